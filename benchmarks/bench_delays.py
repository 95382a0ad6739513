"""What do learned delays cost, over the schedule of their widths, and step by step?

    python benchmarks/bench_delays.py --upstream build/dcls-0.1.1 --threads 2
    python benchmarks/bench_delays.py --check    # exit status 1 if a limit is not kept

A training step of ``DelayLinear(256, 256, 24)``, that is 25 points, on 100 steps of 128 sequences:
``synaptic`` at widths from 12 to 0.23, beside torch's convolution with a dense kernel, and with
``--upstream`` the Dcls1d of 0.1.1 in the same place. ``over torch`` is how many times longer it
takes than torch's convolution, and ``over 0.1.1`` than that, round by round. Then the other
sharings, and ``axonal`` in three ways.

``step`` is one step without gradients, beside ``nn.Linear`` of the size: with whole delays, and
with those of gauss. ``in place`` is ``step_``, with taps given.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import conv_cases
import harness
import machine
import torch
import torch.nn.functional as F
from harness import Row
from torch import Tensor, nn

import DCLS
from DCLS.delays import Delay, DelayLinear

CHANNELS, MAX_DELAY, STEPS, BATCH = 256, 24, 100, 128
#: Along the exponential schedule of arXiv 2306.17670, from half the kernel to 0.23.
WIDTHS = (12.0, 6.0, 3.0, 1.5, 0.75, 0.4, 0.23)
PARTS = ("schedule", "sharing", "step")
BATCHES = (1, 32, 128)
#: The most times longer that a training step may take than the peers, and a step than nn.Linear.
ALLOWED, STEP_ALLOWED = 1.05, 2.0
OURS, TORCH, UPSTREAM = "DelayLinear", "torch's convolution", "Dcls1d of 0.1.1"


class Peer(nn.Module):
    """A layer on (B, N, T) in the place of a ``DelayLinear`` of the layout TBN."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        """Pads the past, and moves time back."""
        return self.layer(F.pad(input.permute(1, 2, 0), (MAX_DELAY, 0))).permute(2, 0, 1)


class DepthwiseFirst(nn.Module):
    """Axonal delays as a depthwise delay before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.delay = Delay(CHANNELS, MAX_DELAY)
        self.linear = nn.Linear(CHANNELS, CHANNELS, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Delays, and adds up."""
        return self.linear(self.delay(input))


def set_width(layer: Any, width: float) -> None:
    """As a schedule does."""
    with torch.no_grad():
        layer.SIG.fill_(width)
    layer.known_width = width


def training(layer: nn.Module, x: Tensor, grad: Tensor) -> harness.Step:
    """Returns a step: the output, and all gradients."""
    parameters = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), parameters, grad)


def problem() -> tuple[Tensor, Tensor]:
    """Returns spikes, and a gradient of the output."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(STEPS, BATCH, CHANNELS, generator=generator) < 0.1).float().requires_grad_()
    return x, torch.randn(STEPS, BATCH, CHANNELS, generator=generator)


def as_rows(timings: dict[str, Any], base: str, label: str, **more: Any) -> list[Row]:
    """Returns a row for each way, with how many times longer than ``base`` it takes."""
    return [
        {
            **more,
            "way": name,
            "ms": harness.milliseconds(seconds),
            label: harness.ratio(seconds, timings[base]),
        }
        for name, seconds in timings.items()
    ]


def schedule(options: argparse.Namespace) -> list[Row]:
    """Measures the widths of the schedule."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {OURS: DelayLinear(CHANNELS, CHANNELS, MAX_DELAY)}
    more: Any = {"dilated_kernel_size": MAX_DELAY + 1, "bias": False}
    layers[TORCH] = Peer(nn.Conv1d(CHANNELS, CHANNELS, MAX_DELAY + 1, bias=False))
    if options.upstream is not None:
        with conv_cases._quiet():
            theirs = machine.load_upstream(Path(options.upstream))
            layers[UPSTREAM] = Peer(theirs.Dcls1d(CHANNELS, CHANNELS, 1, version="gauss", **more))
    x, grad = problem()
    rows: list[Row] = []
    for width in WIDTHS:
        set_width(layers[OURS], width)
        peers: Any = layers
        peers[TORCH].layer.weight.data.copy_(peers[OURS].kernel())
        if UPSTREAM in layers:
            peers[UPSTREAM].layer.load_state_dict(peers[OURS].state_dict())
        outputs = {name: layer(x) for name, layer in layers.items()}
        for name, output in outputs.items():
            harness.check_agreement(f"{OURS} differs from {name}", outputs[OURS], output, 2e-5)
        del outputs
        timings = harness.time_steps(
            {name: training(layer, x, grad) for name, layer in layers.items()}, options
        )
        chosen = layers[OURS].explain(x).method  # type: ignore[operator]  # it has one
        row: Row = {"part": "schedule", "width": width, "method": chosen}
        row["ms"] = harness.milliseconds(timings[OURS])
        row["over torch"] = harness.ratio(timings[OURS], timings[TORCH])
        if UPSTREAM in timings:
            row["over 0.1.1"] = harness.ratio(timings[OURS], timings[UPSTREAM])
        rows.append(row)
    return rows


def sharing(options: argparse.Namespace) -> list[Row]:
    """Measures the sharings, and other ways to compute the axonal one."""
    torch.manual_seed(0)
    axonal = DelayLinear(CHANNELS, CHANNELS, MAX_DELAY, sharing="axonal")
    expanded = DelayLinear(CHANNELS, CHANNELS, MAX_DELAY)
    expanded.set_delays(axonal.delays().unsqueeze(0))
    layers: dict[str, nn.Module] = {
        "synaptic": DelayLinear(CHANNELS, CHANNELS, MAX_DELAY),
        "dendritic": DelayLinear(CHANNELS, CHANNELS, MAX_DELAY, sharing="dendritic"),
        "axonal": axonal,
        "axonal: delay, linear": DepthwiseFirst(),
        "axonal: dense kernel": expanded,
    }
    x, grad = problem()
    rows = []
    for width in (WIDTHS[0], WIDTHS[-1]):
        modules = [module for layer in layers.values() for module in layer.modules()]
        for module in modules:
            if isinstance(module, (DelayLinear, Delay)):
                set_width(module, width)
        steps = {name: training(layer, x, grad) for name, layer in layers.items()}
        timings = harness.time_steps(steps, options)
        rows += as_rows(timings, "synaptic", "over synaptic", part="sharing", width=width)
    return rows


def step(options: argparse.Namespace) -> list[Row]:
    """Measures one step without gradients."""
    torch.manual_seed(0)
    kinds: dict[str, DelayLinear] = {
        name: DelayLinear(CHANNELS, CHANNELS, MAX_DELAY, sharing=name)  # type: ignore[arg-type]  # names
        for name in ("synaptic", "axonal", "dendritic")
    }
    rows = []
    for batch in BATCHES:
        x, linear = torch.randn(batch, CHANNELS), nn.Linear(CHANNELS, CHANNELS, bias=False)
        steps: dict[str, harness.Step] = {"linear": _without_gradients(linear, x)}
        for name, layer in kinds.items():
            for delays in ("whole", "gauss"):
                one = copy.deepcopy(layer)
                if delays == "whole":
                    DCLS.round_(one)
                with torch.no_grad():
                    taps, state = one.taps(), one.initial_state(batch)
                steps[f"{name}, {delays}, taps given"] = _without_gradients(
                    one.step, x, state, taps
                )
                steps[f"{name}, {delays}, in place"] = _without_gradients(
                    one.step_, x, state.clone(), taps
                )
                steps[f"{name}, {delays}"] = _without_gradients(one.step, x, state)
        timings = harness.time_steps(steps, options)
        rows += as_rows(timings, "linear", "over nn.Linear", part="step", batch=batch)
    return rows


def _without_gradients(call: Any, *arguments: Any) -> harness.Step:
    def run() -> object:
        with torch.no_grad():
            return call(*arguments)

    return run


def too_slow(rows: list[Row]) -> list[str]:
    """Says what takes longer than it may."""
    found = [
        f"width {row['width']}: {row[peer].median} times {peer.removeprefix('over ')}"
        for row in rows
        for peer in ("over torch", "over 0.1.1")
        if peer in row and row[peer].median > ALLOWED
    ]
    found += [
        f"{row['way']}, batch {row['batch']}: {row['over nn.Linear'].median} times nn.Linear"
        for row in rows
        if ", whole" in row.get("way", "") and row["over nn.Linear"].median > STEP_ALLOWED
    ]
    return found


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("What learned delays cost.", upstream=True)
    parser.add_argument("--check", action="store_true", help="exit status 1 if it costs too much")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    harness.apply_options(parser, options)
    if options.device != "cpu":
        parser.error("argument --device: this benchmark is of the CPU")
    ways = {"schedule": schedule, "sharing": sharing, "step": step}
    found: list[str] = []

    def show(rows: list[Row]) -> str:
        found.extend(too_slow(rows))
        return "\n".join([harness.table(rows), *found])

    status = harness.run(
        "delays", parser, options, options.parts, lambda part: ways[part](options), show=show
    )
    return 1 if options.check and found else status


if __name__ == "__main__":
    sys.exit(main())
