"""What the trainings of the demo came to, and how they compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from DCLS.demo.tasks import KINDS, Kind, Task, count_parameters


@dataclass(frozen=True)
class Outcome:
    """A trained network, on the CPU, with its initial state and what the training came to.

    Attributes:
        kind: the kind of the network.
        seed: of its initial values, the order of the examples, and the validation examples.
        initial: the network before the training.
        network: the network after it.
        loss: mean training loss of the last epoch.
        validation: accuracy on the validation examples, in [0, 1].
        test: accuracy on the test examples, in [0, 1], measured once, after the training.
        seconds: that the training took.
    """

    kind: Kind
    seed: int
    initial: nn.Module
    network: nn.Module
    loss: float
    validation: float
    test: float
    seconds: float

    @property
    def parameters(self) -> int:
        """Number of learnable numbers."""
        return count_parameters(self.network)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation of the sample: NaN for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def table(task: Task, outcomes: Sequence[Outcome]) -> str:
    """The comparison: network, parameters, mean and standard deviation of accuracies, time."""
    rows = [["network", "parameters", "validation", "test accuracy", "seeds", "seconds a training"]]
    for kind in KINDS:
        if mine := [one for one in outcomes if one.kind == kind]:
            accuracies = [
                "{:.2f} +- {:.2f} %".format(*mean_and_deviation([100 * value for value in values]))
                for values in ([one.validation for one in mine], [one.test for one in mine])
            ]
            seconds = statistics.fmean(one.seconds for one in mine)
            count = str(len(mine))
            rows.append(
                [task.label(kind), str(mine[0].parameters), *accuracies, count, f"{seconds:.1f}"]
            )
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    rows.insert(1, ["-" * width for width in widths])
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join(map("   ".join, lines))


def by_kind(outcomes: Sequence[Outcome]) -> dict[Kind, list[float]]:
    """The accuracies on the test examples of each kind that there is, in the order of the seeds."""
    tests = {kind: [one.test for one in outcomes if one.kind == kind] for kind in KINDS}
    return {kind: values for kind, values in tests.items() if values}


def verdict(task: Task, outcomes: Sequence[Outcome]) -> str:
    """One sentence on two lines: what was learned, and whether that beat the best other kind."""
    tests = by_kind(outcomes)
    means = {kind: statistics.fmean(values) for kind, values in tests.items()}
    result = f"{means['learned']:.1%} right on {task.title}"
    rivals = [kind for kind in tests if kind != "learned"]
    if not rivals:
        return f"Learning {task.learned}: {result}"
    rival = max(rivals, key=lambda kind: means[kind])
    lead = means["learned"] - means[rival]
    end = "won" if lead > 0 else "lost" if lead < 0 else "tied"
    pairs = list(zip(tests["learned"], tests[rival], strict=True))
    ahead = f"ahead in {sum(ours > other for ours, other in pairs)} of {len(pairs)} seeds"
    return (
        f"Learning {task.learned} {end}: {result},\n"
        f"against {means[rival]:.1%} with {task.label(rival)} ({ahead})"
    )
