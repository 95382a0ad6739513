"""The models of ``bench_model.py``, and the steps that are timed on them.

Shaped as ConvNeXt (arXiv 2201.03545), in the blocks of ``DCLS.demo``, with depthwise layers of
torch or of DCLS. Models that differ in these only start from the same values in all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conv_cases
import harness
import torch
import torch.nn.functional as F
from conv_cases import CONV, DTYPES, PLAIN, UPSTREAM, Case
from torch import Tensor, nn

import DCLS
from DCLS.demo.model import Block

PASSES = ("inference", "training")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
CLASSES = 1000


@dataclass(frozen=True)
class Size:
    """What a model is made of, and what it is fed."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    resolution: int
    batch: int


SIZES = {
    "tiny": Size((3, 3, 9, 3), (96, 192, 384, 768), 224, 128),
    "small": Size((1, 1, 3, 1), (96, 192, 384, 768), 128, 8),
    "toy": Size((1, 1), (8, 16), 32, 2),
}


@dataclass(frozen=True)
class Spacing:
    """The DCLS layers of a model."""

    kernel: int
    elements: int
    version: str


SPACINGS = {"17x17": Spacing(17, 34, "v1"), "23x23": Spacing(23, 26, "gauss")}

# --------------------------------------------------------------------------------------- the models


class ConvNeXt(nn.Module):
    """Stages of blocks with a layer that halves the maps between them.

    Args:
        size: depths and dims.
        layers: the depthwise layers, from the stem to the head.
        layout: the memory format of the maps between the blocks.
    """

    def __init__(self, size: Size, layers: Sequence[nn.Module], layout: str) -> None:
        super().__init__()
        self.layout = LAYOUTS[layout]
        self.down = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.stages = nn.ModuleList()
        depthwise = iter(layers)
        previous = 3
        for index, (depth, dim) in enumerate(zip(size.depths, size.dims, strict=True)):
            # A norm on either side of the stem's layer, as in the original, would be one too many.
            steps = 4 if index == 0 else 2
            self.down.append(nn.Conv2d(previous, dim, steps, stride=steps))
            self.norms.append(nn.LayerNorm(dim if index == 0 else previous))
            stage = nn.Sequential(*(Block(dim) for _ in range(depth)))
            for block in stage:
                assert isinstance(block, Block)
                block.depthwise = next(depthwise)
            self.stages.append(stage)
            previous = dim
        self.norm = nn.LayerNorm(previous)
        self.head = nn.Linear(previous, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for index, (down, norm, stage) in enumerate(
            zip(self.down, self.norms, self.stages, strict=True)
        ):
            if index == 0:
                x = down(x)
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            if index > 0:
                x = down(x)
            # A block keeps the layout of what it is given.
            x = stage(x.contiguous(memory_format=self.layout))
        scores: Tensor = self.head(self.norm(x.mean((2, 3))))
        return scores


def make_depthwise(size: Size, kind: str, method: str, upstream: str) -> list[nn.Module]:
    """Returns the depthwise layers, equal ones for all methods but ``plain``."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for depth, dim in zip(size.depths, size.dims, strict=True):
        for _ in range(depth):
            if method == PLAIN:
                layers.append(nn.Conv2d(dim, dim, 7, padding=3, groups=dim))
                continue
            spacing = SPACINGS[kind]
            case = Case(
                1, dim, (1, 1), (spacing.kernel,) * 2, spacing.elements, spacing.version, dim
            )
            layer = conv_cases.make_layer(DCLS, case)
            conv_cases.spread_positions(layer)
            if method == UPSTREAM:
                state = layer.state_dict()
                with torch.random.fork_rng([]):  # the next layer draws what it would without
                    layer = conv_cases.make_layer(harness.load_upstream(Path(upstream)), case)
                layer.load_state_dict(state)
            elif method == CONV:
                layer.method = CONV
            layers.append(layer)
    return layers


def make_model(
    size: Size, kind: str, method: str, layout: str, device: str, upstream: str
) -> ConvNeXt:
    """Returns a model, equal but for the depthwise layers to all others."""
    layers = make_depthwise(size, kind, method, upstream)
    torch.manual_seed(1)
    model = ConvNeXt(size, layers, layout).to(device)
    # The plain layers' own weights, as users do it; those of DCLS have no layout to set.
    return model.to(memory_format=LAYOUTS[layout])


def make_step(model: ConvNeXt, size: Size, which: str, device: str, dtype: str) -> harness.Step:
    """Returns a step of inference or training."""
    generator = torch.Generator(device).manual_seed(2)
    shape = (size.batch, 3, size.resolution, size.resolution)
    images = torch.randn(shape, generator=generator, device=device)
    images = images.to(memory_format=model.layout)
    labels = torch.randint(CLASSES, (size.batch,), generator=generator, device=device)
    context = {"device_type": device, "dtype": DTYPES[dtype], "enabled": dtype != "float32"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-8, weight_decay=0.0)

    def infer() -> object:
        with torch.no_grad(), torch.autocast(**context):
            return model(images)

    def train() -> None:
        with torch.autocast(**context):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return infer if which == PASSES[0] else train


def memory_step(
    scale: int,
    sizes: Sequence[Any],
    kind: str,
    method: str,
    layout: str,
    which: str,
    device: str,
    dtype: str,
    upstream: str,
) -> harness.Step:
    """A step for :mod:`peak_memory`."""
    depths, dims, resolution, batch = sizes
    size = Size(tuple(depths), tuple(dims), resolution, batch * scale)
    model = make_model(size, kind, method, layout, device, upstream)
    return make_step(model, size, which, device, dtype)
