"""The demo's network: a small ConvNeXt, with depthwise layers of DCLS or plain ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from DCLS import Dcls2d

if TYPE_CHECKING:
    from DCLS.demo.settings import Settings

CHANNELS = 32
DEPTH = 2
CLASSES = 10


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


def dcls_network(settings: Settings) -> DigitsNet:
    """The network with DCLS depthwise layers, initialised from ``settings.seed``, on the CPU.

    By default positions start all over the kernel. The start of the papers, ``normal``, is within
    about a pixel of the centre. It is for trainings of hundreds of epochs, in which positions move
    by many pixels. Ten epochs move them by about one.
    """

    def make(channels: int) -> nn.Module:
        return Dcls2d(
            channels,
            channels,
            kernel_count=settings.elements,
            dilated_kernel_size=settings.kernel_size,
            padding=settings.kernel_size // 2,
            groups=channels,
            version=settings.version,
            init_positions=settings.init_positions,
        )

    torch.manual_seed(settings.seed)
    return DigitsNet(make)


def plain_network(settings: Settings) -> DigitsNet:
    """The same network with plain depthwise layers, initialised from the same seed, on the CPU."""

    def make(channels: int) -> nn.Module:
        size = settings.plain_kernel_size
        return nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)

    torch.manual_seed(settings.seed)
    return DigitsNet(make)


def count_parameters(network: nn.Module) -> int:
    """Number of learnable numbers in ``network``."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


class Epoch(NamedTuple):
    """What an epoch came to: mean training loss, test accuracy in [0, 1], training seconds."""

    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """A trained network, on the CPU, with its initial state and what its epochs came to."""

    name: str
    initial: DigitsNet
    network: DigitsNet
    epochs: list[Epoch]

    @property
    def parameters(self) -> int:
        """Number of learnable numbers."""
        return count_parameters(self.network)

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch, in [0, 1]."""
        return self.epochs[-1].accuracy

    @property
    def seconds(self) -> float:
        """Mean training time of an epoch in seconds."""
        return sum(epoch.seconds for epoch in self.epochs) / len(self.epochs)
