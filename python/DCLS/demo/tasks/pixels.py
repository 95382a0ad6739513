"""Which digit? A network that sees its image as a sequence, one pixel a step.

The pixel above comes eight steps before. So a network with delays has to learn where to look back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from DCLS.demo.tasks.base import Connections, Data, DelayTask, Kind, Recipe
from DCLS.demo.tasks.digits import CLASSES, load_images


class PixelNet(nn.Module):
    """Two layers of connections with delays, the mean over the image, a linear classifier.

    Args:
        connections: makes the layers.
        neurons: outputs of each.
    """

    def __init__(self, connections: Connections, neurons: int) -> None:
        super().__init__()
        self.first = connections(1, neurons)
        self.second = connections(neurons, neurons)
        self.norm = nn.LayerNorm(neurons)
        self.head = nn.Linear(neurons, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps ``(B, 64, 1)`` to class scores ``(B, 10)``."""
        x = torch.relu(self.second(torch.relu(self.first(pixels))))
        scores: Tensor = self.head(self.norm(x.mean(1)))
        return scores


class Pixels(DelayTask):
    """scikit-learn's digits, row by row, one pixel a step: 1347 for training and 450 for test."""

    title = "digits seen pixel by pixel"
    learned = "how far back to look"
    packages: ClassVar[Mapping[str, str]] = {"sklearn": "scikit-learn"}
    recipe = Recipe(
        epochs=15, batch_size=64, lr=1e-2, position_lr_scale=20, weight_decay=1e-3,
        first_width=6,
    )  # fmt: skip
    max_delay, neurons = 24, 16
    # Of the regular delays from 2 to 8 apart, 6 were the best on validation examples.
    fixed_delays: ClassVar[Mapping[Kind, Sequence[int]]] = {
        "fixed": (0, 6, 12, 18),
        "plain": (0, 1, 2, 3),
    }

    def load(self, seed: int) -> Data:
        """Loads sequences ``(N, 64, 1)``."""
        return load_images(lambda images: images.flatten(1).unsqueeze(-1), seed)

    def build(self, connections: Connections, neurons: int) -> nn.Module:
        """Returns the network."""
        return PixelNet(connections, neurons)
