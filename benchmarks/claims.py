"""Which claims of the papers hold in miniature, on data that can be had offline?

    pip install ".[demo,bench]"
    python benchmarks/claims.py --threads 1
    python benchmarks/claims.py --threads 1 --timing    # on an idle machine

The data, the networks and the recipes are those of ``dcls demo``. The networks that are compared
have as many parameters to within a few in a hundred, and the first one never has the most.

Each network of each task takes the learning rate out of three that is best on validation examples,
with a seed of its own. Then it is trained from each of the other seeds, and meets the test examples
once. Networks are compared seed by seed: a claim has the mean difference of their accuracies on the
test examples, in points of a hundred, and the 95 % interval of Student's t.

``--timing`` measures a training step instead: the output, the loss and all gradients. ``over base``
is how many times longer it takes than with ``base``, the network without delays, or where there is
none, with plain convolutions. The gaussians of delays have their last width, 0.23.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import harness
import torch
import torch.nn.functional as F
from harness import Row
from scipy import stats
from torch import Tensor, nn

import DCLS
from DCLS.delays import DelayLinear
from DCLS.demo.tasks import KINDS, TASKS, Data, Recipe, count_parameters
from DCLS.demo.tasks.base import DelayTask
from DCLS.demo.train import evaluate, train

#: How many seeds each task has, from 1 on. Seed 0 chooses the learning rate.
SEEDS = {"pixels": 5, "delays": 5, "signals": 5, "digits": 3}
CHOOSING_SEED = 0
#: The rates to choose from, over that of the recipe.
RATES = (1.0, 0.5, 2.0)
#: What takes long is trained for fewer epochs than in the demo.
EPOCHS = {"digits": 5}
#: Learned delays, rounded after the training, as arXiv 2306.17670 does.
ROUNDED = "rounded"


class Claim(NamedTuple):
    """One network is better than another one."""

    paper: str  #: its number on arXiv
    text: str
    better: str
    worse: str
    tasks: tuple[str, ...]


_DELAYS = ("pixels", "delays", "signals")
CLAIMS = (
    Claim(
        "2112.03740", "Learned positions are better than fixed regular ones",
        "learned", "fixed", (*_DELAYS, "digits"),
    ),
    Claim(
        "2306.00817", "Gaussian interpolation is better than bilinear (v1)",
        "learned", "v1", (*_DELAYS, "digits"),
    ),
    Claim(
        "2306.17670", "Learned delays are better than fixed random ones",
        "learned", "random", _DELAYS,
    ),
    # A network of pixels without delays sees no more than one pixel.
    Claim(
        "2306.17670", "Fixed random delays are better than none",
        "random", "none", _DELAYS[1:],
    ),
    Claim("2306.17670", "Learned delays are better than none", "learned", "none", _DELAYS[1:]),
)  # fmt: skip


def networks(task: str) -> list[str]:
    """Returns the networks that the claims compare on a task."""
    pairs = ((claim.better, claim.worse) for claim in CLAIMS if task in claim.tasks)
    return list(dict.fromkeys(itertools.chain.from_iterable(pairs)))


# ---------------------------------------------------------------------------------- the networks


def connections(
    task: DelayTask, name: str, inputs: int, outputs: int, bias: bool = True
) -> DelayLinear:
    """Returns a layer that the demo has not.

    ``v1``: learned delays without widths. ``random``: two weights for each learned delay with its
    weight, whose delays are drawn, whole, and stay. ``none``: no delays.
    """
    weights = len(task.fixed_delays["fixed"])
    make = partial(DelayLinear, inputs, outputs, layout="BTN", bias=bias)
    if name == "v1":
        return make(max_delay=task.max_delay, count=weights // 2, version="v1")
    if name == "none":
        layer = make(max_delay=0, version="v0", init_delays=0.0)
    else:
        layer = make(
            max_delay=task.max_delay, count=weights, version="v0",
            init_delays=lambda delays, longest: torch.randint_like(delays, longest + 1),
        )  # fmt: skip
    layer.P.requires_grad_(False)
    return layer


def make_network(task_name: str, name: str, seed: int) -> nn.Module:
    """Returns a network, initialised from ``seed``, with as many parameters as ``learned`` has.

    One without delays has more neurons instead, and a few parameters more.
    """
    task = TASKS[task_name]()
    if name in KINDS:
        return task.network(name, seed)
    if not isinstance(task, DelayTask):
        return TASKS[task_name](version=name).network("learned", seed)  # type: ignore[call-arg]
    least = count_parameters(task.network("learned", seed))
    for neurons in itertools.count(task.neurons):
        torch.manual_seed(seed)
        network = task.build(partial(connections, task, name), neurons)
        if count_parameters(network) >= least:
            return network
    raise AssertionError  # count() has no end


# ---------------------------------------------------------------------------------- the trainings


def load(task: str, seed: int) -> Data:
    """Returns the data of a task in float32."""
    return TASKS[task]().load(seed).to(torch.device("cpu"), torch.float32)


def recipe_of(task: str, options: argparse.Namespace) -> Recipe:
    """Returns the recipe of a task."""
    recipe = TASKS[task].recipe
    epochs = 1 if options.quick else EPOCHS.get(task, recipe.epochs)
    return replace(recipe, epochs=epochs)


def trained(task: str, name: str, seed: int, data: Data, recipe: Recipe) -> nn.Module:
    """Returns a trained network."""
    network = make_network(task, name, seed)
    if not any(getattr(layer, "SIG", None) is not None for layer in network.modules()):
        recipe = replace(recipe, first_width=None)
    train(network, data.train, recipe, seed)
    return network


def percent(part: float) -> float:
    """A part of one as a rounded part of a hundred."""
    return harness.rounded(100 * part)


def trainings(task: str, options: argparse.Namespace) -> list[Row]:
    """Chooses the rate of each network, and trains it from each seed."""
    rows: list[Row] = []
    recipe = recipe_of(task, options)
    choosing = load(task, CHOOSING_SEED)
    rates: dict[str, float] = {}
    for name in networks(task):
        found = {}
        for factor in RATES[:1] if options.quick else RATES:
            rate = factor * recipe.lr
            network = trained(task, name, CHOOSING_SEED, choosing, replace(recipe, lr=rate))
            found[rate] = percent(evaluate(network, choosing.validation))
            row: Row = {"part": "rate", "task": task, "network": name}
            rows.append({**row, "seed": CHOOSING_SEED, "rate": rate, "validation": found[rate]})
        rates[name] = max(found, key=lambda rate: found[rate])
        harness.progress(f"{task}, {name}: rate {rates[name]} of {found}")
    for seed in range(1, 1 + (2 if options.quick else SEEDS[task])):
        data = load(task, seed)
        for name, rate in rates.items():
            network = trained(task, name, seed, data, replace(recipe, lr=rate))
            row = {"part": "training", "task": task, "network": name, "seed": seed, "rate": rate}
            row["parameters"] = count_parameters(network)
            rows.append({**row, **accuracies(network, data)})
            harness.progress(str(rows[-1]))
            if name == "learned" and issubclass(TASKS[task], DelayTask):
                DCLS.round_(network)
                rows.append({**row, "network": ROUNDED, **accuracies(network, data)})
    return rows


def accuracies(network: nn.Module, data: Data) -> Row:
    """Returns the accuracies on the validation and the test examples, in percent."""
    parts = {"validation": data.validation, "test": data.test}
    return {name: percent(evaluate(network, examples)) for name, examples in parts.items()}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean, and the ends of its 95 % interval by Student's t."""
    count = len(differences)
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / count**0.5
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return mean, mean - half, mean + half


def compared(rows: Sequence[Row]) -> list[Row]:
    """Returns a row for each claim and each task that speaks to it and is among the trainings."""
    found = []
    for claim in CLAIMS:
        for task in claim.tasks:
            better, worse = (
                [row["test"] for row in harness.select(rows, {
                    "part": "training", "task": task, "network": name
                })] for name in (claim.better, claim.worse)
            )  # fmt: skip
            if not better:
                continue
            differences = [one - other for one, other in zip(better, worse, strict=True)]
            mean, low, high = interval(differences)
            found.append(
                {
                    "paper": claim.paper,
                    "claim": claim.text,
                    "task": task,
                    "better": statistics.fmean(better),
                    "worse": statistics.fmean(worse),
                    "difference": mean,
                    "low": low,
                    "high": high,
                    "wins": sum(difference > 0 for difference in differences),
                    "seeds": len(differences),
                }
            )
    return found


# ------------------------------------------------------------------------------------- the times


def speed(task: str, options: argparse.Namespace) -> list[Row]:
    """Measures a training step of each network."""
    data = load(task, CHOOSING_SEED).train
    batch = data.part(torch.arange(TASKS[task].recipe.batch_size))
    base = "none" if "none" in networks(task) else "plain"
    steps = {
        name: _training_step(make_network(task, name, CHOOSING_SEED), *batch)
        for name in dict.fromkeys([*networks(task), base])
    }
    timings = harness.time_steps(steps, options)
    return [
        {
            "part": "speed",
            "task": task,
            "network": name,
            "base": base,
            "ms": harness.milliseconds(seconds),
            "over base": harness.ratio(seconds, timings[base]),
        }
        for name, seconds in timings.items()
    ]


def _training_step(network: nn.Module, inputs: Tensor, labels: Tensor) -> harness.Step:
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def step() -> Any:
        return torch.autograd.grad(F.cross_entropy(network(inputs), labels), learned)

    return step


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("Which claims of the papers hold in miniature.")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    help = "measure training steps instead of training, on an idle machine"
    parser.add_argument("--timing", action="store_true", help=help)
    options = parser.parse_args()
    harness.apply_options(parser, options)
    if options.device != "cpu":
        parser.error("argument --device: this benchmark is of the CPU")
    measure, show = (speed, harness.table) if options.timing else (trainings, show_claims)
    return harness.run(
        "claims", parser, options, options.tasks, lambda task: measure(task, options), show=show
    )


def show_claims(rows: list[Row]) -> str:
    """Lays out what the claims come to."""
    return harness.table(compared(rows))


if __name__ == "__main__":
    sys.exit(main())
