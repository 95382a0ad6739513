"""Time and memory of a whole model: the same ConvNeXt with plain 7x7 and with DCLS layers.

    pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
    python benchmarks/bench_model.py --upstream build/dcls-0.1.1 --threads 2 --slow-repeats 2

The model is shaped as ConvNeXt-T (arXiv 2201.03545: ``--size tiny``, the default on CUDA) or
smaller (``--size small``, the default on CPU), in the blocks of ``DCLS.demo``. Models that
differ in their depthwise layers only start from the same values in all else. These layers are

* ``plain``: 7x7 ones of torch;
* ``17x17``: DCLS, 34 elements, v1; ``23x23``: DCLS, 26 elements, gauss; and ``17x17-gauss``, only
  on request: DCLS, 26 elements, gauss; each
* ``dcls`` as they are, ``conv`` with method="conv", torch's convolution with the constructed
  kernel, and ``upstream`` out of DCLS 0.1.1 with ``--upstream``, all with the same parameters.

``training`` is a forward and a backward pass, cross entropy, and a step of AdamW, at a rate so
small that the positions stay what they are: uniform over the kernel. ``inference`` is a forward
pass without gradients. The maps between the blocks are in torch's contiguous layout (``NCHW``) or
in channels_last. 16-bit types are by autocast. Before anything is timed, the scores that the
layers of one kernel give must agree.

Columns: ``over 7x7``, how many times longer a model takes than the plain one in the same layout;
``over best``, than the plain one in its better layout; ``MiB``, the extra peak of
:mod:`peak_memory`: parameters and the optimizer's state were there before, gradients were not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import conv_cases
import harness
import machine
import torch
import torch.nn.functional as F
from conv_cases import AGREEMENT, CONV, DCLS_LAYER, DTYPES, PLAIN, UPSTREAM, Case
from harness import UNIFORM, Row
from torch import Tensor, nn

import DCLS
from DCLS.demo.tasks.digits import Block

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


SPACINGS = {
    "17x17": Spacing(17, 34, "v1"),
    "23x23": Spacing(23, 26, "gauss"),
    "17x17-gauss": Spacing(17, 26, "gauss"),
}
USUAL = ("17x17", "23x23")

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
                    layer = conv_cases.make_layer(machine.load_upstream(Path(upstream)), case)
                layer.load_state_dict(state)
            elif method == CONV:
                layer.method = CONV
            layers.append(layer)
    return layers


def make_model(
    size: Size, kind: str, method: str, layout: str, device: str, upstream: str
) -> ConvNeXt:
    """Returns a model. All models are equal, except for the depthwise layers."""
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


# ------------------------------------------------------------------------------------ measurements


def key(kind: str, method: str, layout: str) -> str:
    """What a figure of a model goes by."""
    return f"{kind}/{method}/{layout}"


def variants(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns kind and method of the models to compare."""
    methods = [DCLS_LAYER, CONV] if options.with_conv else [DCLS_LAYER]
    methods += [UPSTREAM] if options.upstream is not None else []
    return [("7x7", PLAIN), *((kind, method) for kind in options.kernels for method in methods)]


def check_agreement(
    size: Size, models: dict[tuple[str, str, str], ConvNeXt], options: argparse.Namespace
) -> None:
    """Compares the scores of the models of one kernel; DisagreementError if they differ."""
    small = replace(size, batch=1)
    scores: dict[str, Tensor] = {}
    for (kind, method, layout), model in models.items():
        step: Any = make_step(model, small, PASSES[0], options.device, options.dtype)
        got = step().float()
        expected = scores.setdefault(kind, got)
        what = f"the scores of {key(kind, method, layout)} differ"
        harness.check_agreement(what, got, expected, AGREEMENT[options.dtype])


def measure(
    size: Size,
    models: dict[tuple[str, str, str], ConvNeXt],
    which: str,
    options: argparse.Namespace,
) -> list[Row]:
    """Returns the rows of all models in one pass."""
    check_agreement(size, models, options)
    common = {"sizes": [size.depths, size.dims, size.resolution, size.batch], "which": which}
    common |= {"dtype": options.dtype, "upstream": str(options.upstream or "")}
    columns = ("kind", "method", "layout")
    asked = {names: {**common, **dict(zip(columns, names, strict=True))} for names in models}
    memory = harness.extra_peaks(memory_step, asked, options)
    steps = {
        key(*names): make_step(model, size, which, options.device, options.dtype)
        for names, model in models.items()
    }
    timings = harness.time_steps(steps, options)
    plain = {layout: timings[key("7x7", PLAIN, layout)] for layout in options.layouts}
    better = min(plain.values(), key=statistics.median)
    rows = []
    for names in models:
        seconds = timings[key(*names)]
        row: Row = dict(zip(("kernel", "method", "layout"), names, strict=True), **{"pass": which})
        row |= {
            "ms": harness.milliseconds(seconds),
            "over 7x7": harness.ratio(seconds, plain[names[2]]),
            "over best": harness.ratio(seconds, better),
        }
        if memory:
            row["MiB"] = harness.rounded(memory[names].mebibytes)
        rows.append(row)
    return rows


def parse_options() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads and completes the command line."""
    parser = harness.make_parser("Time and memory of a whole model.", upstream=True, memory=True)
    parser.add_argument(
        "--size",
        choices=list(SIZES),
        help="depths and dims, and what it is fed (default: small on CPU, tiny on CUDA)",
    )
    parser.add_argument("--batch", type=harness.positive_int, metavar="N", help="images a step")
    parser.add_argument("--resolution", type=harness.positive_int, metavar="N", help="of an image")
    parser.add_argument("--kernels", nargs="+", choices=list(SPACINGS), default=list(USUAL))
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument(
        "--dtype",
        choices=[name for name in DTYPES if name not in ("float64", harness.TF32)],
        default="float32",
    )
    parser.add_argument(
        "--no-conv",
        dest="with_conv",
        action="store_false",
        help="leave out torch's convolution with the constructed kernel",
    )
    options = parser.parse_args()
    harness.apply_options(parser, options)
    options.size = options.size or ("tiny" if options.device == "cuda" else "small")
    smallest = 4 * 2 ** (len(SIZES[options.size].dims) - 1)
    if options.resolution is not None and options.resolution < smallest:
        parser.error(f"argument --resolution: takes at least {smallest}, got {options.resolution}")
    return parser, options


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser, options = parse_options()
    chosen = SIZES[options.size]
    size = replace(
        chosen,
        resolution=options.resolution or chosen.resolution,
        batch=options.batch or chosen.batch,
    )
    upstream = str(options.upstream or "")
    models = {
        (kind, method, layout): make_model(size, kind, method, layout, options.device, upstream)
        for kind, method in variants(options)
        for layout in options.layouts
    }
    return harness.run(
        "model",
        parser,
        options,
        options.passes,
        lambda which: measure(size, models, which, options),
        dtype=options.dtype,
        size=options.size,
        batch=size.batch,
        resolution=size.resolution,
        positions=UNIFORM,
    )


if __name__ == "__main__":
    sys.exit(main())
