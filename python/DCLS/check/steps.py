"""Whole layers on this machine: a step again, a step captured, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from DCLS import nn as layers
from DCLS._spec import DTYPES
from DCLS.tuning import ahead, measure
from DCLS.tuning.decide import Limits


class Step(NamedTuple):
    """One case."""

    name: str
    what: str
    dtype: str
    #: Returns whether all is well (None: nothing to judge) and what was found.
    run: Callable[[], tuple[bool | None, str]]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _small(device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A depthwise layer, the same each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layer = layers.Dcls2d(
            16, 16, 5, padding=5, dilated_kernel_size=11, groups=16, method="direct"
        )
        nn.init.uniform_(layer.P, -5, 5)
    return layer.to(device, dtype)


def _input(device: torch.device, dtype: torch.dtype) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(4, 16, 24, 24, generator=draws).to(device, dtype)


def _step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    x = x.detach().requires_grad_()
    output = layer(x)
    inputs = [x, *layer.parameters()]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]


def determinism(device: torch.device) -> Iterator[Step]:
    """A training step gives the same bits again, on a CPU also with other numbers of threads."""
    for dtype in DTYPES:

        def run(dtype: torch.dtype = dtype) -> tuple[bool, str]:
            layer, x = _small(device, dtype), _input(device, dtype)
            threads = torch.get_num_threads()
            runs = [_step(layer, x), _step(layer, x)]
            if device.type == "cpu":
                try:
                    for count in (1, threads + 1):
                        torch.set_num_threads(count)
                        runs.append(_step(layer, x))
                finally:
                    torch.set_num_threads(threads)
            same = all(
                torch.equal(one, other)
                for again in runs[1:]
                for one, other in zip(runs[0], again, strict=True)
            )
            return same, f"{len(runs)} steps, {'the same bits' if same else 'other bits'}"

        yield Step("Dcls2d", "a training step again", _short(dtype), run)


def graphs(device: torch.device) -> Iterator[Step]:
    """A CUDA graph of a layer gives, with another input, what the layer gives."""
    if device.type != "cuda":
        return
    for dtype in (torch.float32, torch.bfloat16):

        def run(dtype: torch.dtype = dtype) -> tuple[bool, str]:
            layer, x = _small(device, dtype), _input(device, dtype)
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                _step(layer, x)  # what a first call does must not be captured
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            fixed = x.clone()
            with torch.cuda.graph(graph):
                captured = _step(layer, fixed)
            other = x.flip(0)
            fixed.copy_(other)
            graph.replay()
            torch.cuda.synchronize(device)
            expected = _step(layer, other)
            same = all(map(torch.equal, captured, expected))
            return same, "replayed with another input" + ("" if same else ": other results")

        yield Step("Dcls2d", "a training step captured", _short(dtype), run)


#: Class, settings, and input, for a CPU and for a GPU.
_TIMED: tuple[tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]], ...] = (
    (
        "Dcls2d",
        {"kernel_count": 34, "dilated_kernel_size": 17, "padding": 8, "version": "v1"},
        (2, 32, 28, 28),
        (64, 96, 56, 56),
    ),
    (
        "Dcls2d",
        {"kernel_count": 34, "dilated_kernel_size": 17, "padding": 8, "version": "v1"},
        (4, 64, 14, 14),
        (64, 384, 14, 14),
    ),
    (
        "Dcls2d",
        {"kernel_count": 26, "dilated_kernel_size": 23, "padding": 11, "version": "gauss"},
        (2, 32, 28, 28),
        (64, 96, 56, 56),
    ),
    (
        "Dcls1d",
        {"kernel_count": 1, "dilated_kernel_size": 25, "version": "v1", "groups": 1},
        (8, 64, 100),
        (32, 256, 1000),
    ),
)


def times(device: torch.device) -> Iterator[Step]:
    """The two ways of some layers beside each other; wrong only if their results differ."""
    cuda = device.type == "cuda"
    limits = Limits(seconds=0.5, rounds=5)
    for kind, settings, small, large in _TIMED:
        shape = large if cuda else small
        for dtype in (torch.float32, torch.bfloat16) if cuda else (torch.float32,):
            for training in (True, False):

                def run(
                    kind: str = kind,
                    settings: dict[str, Any] = settings,
                    shape: tuple[int, ...] = shape,
                    dtype: torch.dtype = dtype,
                    training: bool = training,
                ) -> tuple[bool | None, str]:
                    channels = shape[1]
                    with torch.random.fork_rng([]):
                        layer = getattr(layers, kind)(
                            channels, channels, **{"groups": channels, **settings}
                        ).to(device, dtype)
                    x = torch.zeros(shape, device=device, dtype=dtype, requires_grad=training)
                    with torch.set_grad_enabled(training):
                        (asked,) = ahead.record(layer, x)
                    decision = measure.measure(asked.problem, asked.batch, asked.width, limits)
                    shown = {
                        name: f"{trial.seconds * 1e3:.3g} ms"
                        if math.isfinite(trial.seconds)
                        else trial.failure or "not measured"
                        for name, trial in decision.trials.items()
                    }
                    found = ", ".join(f"{name} {text}" for name, text in sorted(shown.items()))
                    good = False if decision.complaint else None
                    return good, found or "there is no room for it"

                size = "x".join(map(str, shape))
                point = settings["dilated_kernel_size"]
                what = f"{size}, kernel {point}, {'training' if training else 'inference'}"
                yield Step(kind, what, _short(dtype), run)
