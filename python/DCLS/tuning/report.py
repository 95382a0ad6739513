"""What ``DCLS.tune`` returns and shows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple, TextIO

_BAR: Final = 24


class Row(NamedTuple):
    """One layer, called in one way."""

    #: Its name in the model, "" if it is the model.
    name: str
    #: Its class.
    kind: str
    #: Shape of its input as the convolution gets it, "" if it was not called.
    input: str
    #: The dtype in which it convolves.
    dtype: str
    #: ``training`` if a gradient is wanted, else ``inference``.
    passes: str
    #: ``direct``, ``conv`` or ``im2col``.
    method: str
    #: Where the choice comes from, as in ``DCLS.method.Choice``; or ``rank 0``.
    source: str
    #: Why, in words.
    reason: str


class Report:
    """A table of layers.

    Attributes:
        rows: a ``Row`` for each layer and each way in which the model called it.
    """

    _HEADINGS: Final = ("layer", "class", "input", "dtype", "for", "method", "from", "why")

    def __init__(self, rows: Sequence[Row]) -> None:
        """Takes the rows."""
        self.rows = list(rows)

    def __str__(self) -> str:
        """The table."""
        if not self.rows:
            return "the model has no DCLS layers"
        return table(self._HEADINGS, self.rows)

    __repr__ = __str__


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out rows of text in columns; the last one may be long."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    lines.insert(1, ["-" * width for width in (*widths[:-1], len(headings[-1]))])
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


class Progress:
    """A bar on one line of a terminal."""

    def __init__(self, total: int, shown: bool | None = None, stream: TextIO | None = None) -> None:
        """Shows nothing yet.

        Args:
            total: how many steps there are.
            shown: whether to show it; None for only if the stream is a terminal.
            stream: where; None for stderr.
        """
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty() if shown is None else shown
        self._total, self._done = total, 0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._shown:
            filled = _BAR * self._done // self._total
            bar = "#" * filled + "." * (_BAR - filled)
            end = "\n" if self._done == self._total else ""
            self._stream.write(f"\rDCLS.tune [{bar}] {self._done} of {self._total}{end}")
            self._stream.flush()
