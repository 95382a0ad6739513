"""The tasks of ``dcls demo``: each has data, and networks of three kinds with as many parameters.

A task needs the packages of its data when it loads, and none to be imported.
"""

from __future__ import annotations

from DCLS.demo.tasks.base import KINDS, Data, Kind, Recipe, Split, Task, count_parameters
from DCLS.demo.tasks.delays import Delays
from DCLS.demo.tasks.digits import Digits
from DCLS.demo.tasks.pixels import Pixels
from DCLS.demo.tasks.signals import Signals

__all__ = [
    "KINDS",
    "TASKS",
    "Data",
    "Delays",
    "Digits",
    "Kind",
    "Pixels",
    "Recipe",
    "Signals",
    "Split",
    "Task",
    "count_parameters",
]

#: The first one is the default.
TASKS: dict[str, type[Task]] = {
    "pixels": Pixels,
    "delays": Delays,
    "signals": Signals,
    "digits": Digits,
}
