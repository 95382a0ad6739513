"""What the demo says while it runs and when it is done, as text."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from DCLS.demo.experiment import Outcome
from DCLS.demo.train import Epoch


def say(line: str) -> None:
    """Prints ``line`` on stdout, above any progress bar, at once."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Progress:
    """A progress bar over the steps of one network, and a line for each epoch.

    Args:
        steps: number of steps to come.
        epochs: number of epochs to come.
        silent: whether to show nothing. The bar shows on a terminal only, in any case.
    """

    def __init__(self, steps: int, epochs: int, *, silent: bool) -> None:
        self._epochs = epochs
        self._silent = silent
        self._bar = tqdm(
            total=steps, unit="step", leave=False, dynamic_ncols=True, disable=silent or None
        )

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()

    def step(self) -> None:
        """Counts a step."""
        self._bar.update()

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Prints what epoch ``number`` came to."""
        if not self._silent:
            say(
                f"  epoch {number:{len(str(self._epochs))}}/{self._epochs}"
                f"   loss {epoch.loss:.4f}   test accuracy {epoch.accuracy:6.2%}"
                f"   {epoch.seconds:.2f} s"
            )


def table(outcomes: Sequence[Outcome]) -> str:
    """The comparison: network, parameters, test accuracy, seconds an epoch."""
    rows = [("network", "parameters", "test accuracy", "seconds an epoch")]
    rows += [
        (one.name, f"{one.parameters}", f"{one.accuracy:.2%}", f"{one.seconds:.2f}")
        for one in outcomes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "   ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    lines.insert(1, "   ".join("-" * width for width in widths))
    return "\n".join(lines)
