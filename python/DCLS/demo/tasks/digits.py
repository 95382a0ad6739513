"""Which digit? A small ConvNeXt, with depthwise layers of DCLS or plain ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from DCLS import Dcls2d
from DCLS._spec import SIGMA_VERSIONS
from DCLS._types import Version
from DCLS.demo.tasks.base import Data, Kind, Recipe, Split, Task, hold_out
from DCLS.nn.initial import InitPositions

#: Side of the plain network's depthwise kernels, as in ConvNeXt.
PLAIN_KERNEL_SIZE = 7
#: The depthwise layers see maps of 12x12: digits of 24x24 behind a stem of stride 2. A kernel with
#: a longer side than this has cells that never meet the map.
MAX_KERNEL_SIZE = 2 * 12 - 1
CHANNELS = 32
DEPTH = 2
CLASSES = 10


def numbers_per_element(version: str) -> int:
    """Learnable numbers of one element in 2-D: its weight, two positions and perhaps two widths."""
    return 5 if version in SIGMA_VERSIONS else 3


def most_elements(version: str, kernel_size: int) -> int:
    """So many elements have as many learnable numbers as the dense kernel has, or fewer."""
    return kernel_size**2 // numbers_per_element(version)


class Block(nn.Module):
    """A ConvNeXt block (arXiv 2201.03545): depthwise convolution, then a two-layer perceptron.

    Args:
        channels: channels in and out.
        expansion: hidden channels of the perceptron for each channel.
        layer_scale: initial value of the learnable factor on the residual branch. ConvNeXt's 1e-6
            is for deep networks and hundreds of epochs; here the branches have to count at once.
    """

    depthwise: nn.Module

    def __init__(self, channels: int, expansion: int = 4, layer_scale: float = 1.0) -> None:
        super().__init__()
        self.depthwise = nn.Identity()
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, expansion * channels)
        self.act = nn.GELU()
        self.project = nn.Linear(expansion * channels, channels)
        self.layer_scale = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the same shape."""
        y: Tensor = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.layer_scale * self.project(self.act(self.expand(self.norm(y))))
        # y is stored channels last. Torch's depthwise convolutions on the CPU are fastest with it.
        return x + y.permute(0, 3, 1, 2)


class DigitsNet(nn.Module):
    """Patchify stem, blocks, global average, linear classifier.

    The depthwise layers are made last, so that two networks of one seed share the initial values
    of everything else.

    Args:
        make_depthwise: makes a depthwise layer for a number of channels; the layer must keep the
            size of the map.
    """

    def __init__(self, make_depthwise: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, kernel_size=2, stride=2)
        self.stem_norm = nn.LayerNorm(CHANNELS)
        self.blocks = nn.Sequential(*(Block(CHANNELS) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(CHANNELS)
        self.head = nn.Linear(CHANNELS, CLASSES)
        for block in self.blocks:
            block.depthwise = make_depthwise(CHANNELS)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``(N, 1, 24, 24)`` to class scores ``(N, 10)``."""
        x = self.stem_norm(self.stem(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.blocks(x)
        scores: Tensor = self.head(self.norm(x.mean((2, 3))))
        return scores

    def depthwise_layers(self) -> list[nn.Module]:
        """The depthwise layers, from the stem to the head."""
        return [block.depthwise for block in self.blocks if isinstance(block, Block)]


def load_images(arrange: Callable[[Tensor], Tensor], seed: int) -> Data:
    """Loads scikit-learn's digits, shifted and scaled to mean 0 and variance 1 in training.

    Args:
        arrange: makes the inputs ``(N, ...)`` of the images ``(N, 1, 8, 8)``.
        seed: draws the validation examples.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    images = arrange(torch.from_numpy(bunch.images).to(torch.float64).unsqueeze(1))
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=0.25, stratify=bunch.target, random_state=0
    )
    variance, mean = torch.var_mean(images[train])
    digits = Split((images - mean) / variance.sqrt(), labels)
    return Data(*hold_out(digits.part(train), seed), digits.part(test))


class Digits(Task):
    """scikit-learn's 1797 digits: 1347 for training and 450 for test.

    Args:
        version: the interpolation of the layers with learned positions.
        kernel_size: side of their kernels and of those with fixed positions.
        kernel_count: elements of a kernel with learned positions; None for what the 49 weights of a
            plain 7x7 kernel pay for.
        init_positions: where learned positions start. By default they start all over the kernel.
            The start of the papers, ``normal``, is within about a pixel of the centre. It is for
            trainings of hundreds of epochs, in which positions move by many pixels. Ten epochs move
            them by about one.
    """

    title = "handwritten digits"
    learned = "where to look"
    packages: ClassVar[Mapping[str, str]] = {"sklearn": "scikit-learn"}
    recipe = Recipe(epochs=10, batch_size=32, lr=1e-2)

    def __init__(
        self,
        version: Version = "gauss",
        kernel_size: int = 17,
        kernel_count: int | None = None,
        init_positions: InitPositions = "spread",
    ) -> None:
        self.version, self.kernel_size, self.init_positions = version, kernel_size, init_positions
        affordable = PLAIN_KERNEL_SIZE**2 // numbers_per_element(version)
        #: Elements of a kernel with learned positions.
        self.elements = kernel_count or min(affordable, most_elements(version, kernel_size))

    @property
    def plain_kernel_size(self) -> int:
        """Side of the plain kernels: 7, or the next odd size that has as many parameters as ours.

        So the plain network is never the smaller one, whatever ``kernel_count`` asks for.
        """
        size = PLAIN_KERNEL_SIZE
        while size**2 < self.elements * numbers_per_element(self.version):
            size += 2
        return size

    def load(self, seed: int) -> Data:
        """Loads the digits; the images of 8x8 pixels are scaled up to 24x24, bilinearly."""
        return load_images(
            lambda images: F.interpolate(images, (24, 24), mode="bilinear", align_corners=False),
            seed,
        )

    def network(self, kind: Kind, seed: int) -> DigitsNet:
        """Returns the network with depthwise layers of a kind.

        ``fixed`` has the weights of a plain kernel, on a regular grid that fills the kernel.
        """
        size, plain = self.kernel_size, self.plain_kernel_size

        def make(channels: int) -> nn.Module:
            if kind == "plain":
                return nn.Conv2d(channels, channels, plain, padding=plain // 2, groups=channels)
            learned = kind == "learned"
            layer = Dcls2d(
                channels,
                channels,
                kernel_count=self.elements if learned else min(plain, size) ** 2,
                dilated_kernel_size=size,
                padding=size // 2,
                groups=channels,
                version=self.version if learned else "v0",
                init_positions=self.init_positions if learned else "grid",
            )
            layer.P.requires_grad_(learned)
            return layer

        torch.manual_seed(seed)
        return DigitsNet(make)

    def label(self, kind: Kind) -> str:
        """Returns what the kernels of this kind are."""
        size, plain = self.kernel_size, self.plain_kernel_size
        if kind == "plain":
            return f"plain convolutions, {plain}x{plain}"
        if kind == "fixed":
            return f"fixed positions, {min(plain, size)}x{min(plain, size)} in {size}x{size}"
        return f"learned positions, {self.elements} in {size}x{size}"
