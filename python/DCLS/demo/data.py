"""The demo's images: scikit-learn's handwritten digits, which come with the package."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

IMAGE_SIZE = 24
TEST_FRACTION = 0.25
# The split is part of the task: it stays the same whatever the seed of a run.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images ``(N, 1, 24, 24)`` and their labels ``(N,)`` (int64), for training and for test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Digits:
        """The same digits on ``device``, the images as ``dtype``."""
        return Digits(
            self.train_images.to(device, dtype),
            self.train_labels.to(device),
            self.test_images.to(device, dtype),
            self.test_labels.to(device),
        )


def load() -> Digits:
    """Loads the 1797 digits: 1347 for training and 450 for test, in the proportions of the classes.

    The images of 8x8 pixels are scaled up to 24x24, bilinearly, and shifted and scaled to the mean
    0 and variance 1 of the training pixels. float64, on the CPU.
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float64).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(),
        test_size=TEST_FRACTION,
        stratify=bunch.target,
        random_state=SPLIT_SEED,
    )
    variance, mean = torch.var_mean(images[train])
    images = (images - mean) / variance.sqrt()
    return Digits(images[train], labels[train], images[test], labels[test])
