"""The options of ``dcls demo``: defaults, limits, help, and the device that they lead to."""

from __future__ import annotations

import argparse
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import torch

from DCLS import _backend
from DCLS._spec import VERSIONS
from DCLS._types import Version
from DCLS.demo.tasks import TASKS, Digits, Recipe, Task
from DCLS.demo.tasks.digits import MAX_KERNEL_SIZE, most_elements
from DCLS.nn.initial import NAMES, InitPositions

DEFAULT_TASK = next(iter(TASKS))
#: Options that only the digits have; one of them alone asks for the digits.
OF_DIGITS = ("version", "kernel_size", "kernel_count", "init_positions")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")

Number = TypeVar("Number", int, float, str)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run of the demo; ``dcls demo --help`` says what each one does.

    ``batch_size`` counts the examples of all processes. Where ``batch_size``, ``epochs`` or ``lr``
    is None, the task's recipe gives it. ``kernel_count`` may be None, see ``Digits``.
    """

    task: str = DEFAULT_TASK
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    version: Version = "gauss"
    kernel_size: int = 17
    kernel_count: int | None = None
    init_positions: InitPositions = "spread"
    seed: int = 0
    seeds: int = 3
    dtype: str = "float32"
    baseline: bool = True
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    threads: int = 1
    output: Path = Path("dcls-demo.png")
    quiet: bool = False

    def make_task(self) -> Task:
        """The task, with the options that it has."""
        if self.task == "digits":
            return Digits(**{name: getattr(self, name) for name in OF_DIGITS})
        return TASKS[self.task]()

    @property
    def recipe(self) -> Recipe:
        """The recipe of the task, with the options that were given."""
        names = ("epochs", "batch_size", "lr")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(TASKS[self.task].recipe, **given)

    @property
    def seed_range(self) -> range:
        """The seeds, one after the other."""
        return range(self.seed, self.seed + self.seeds)


# Where the demo runs


def environment(name: str, default: int) -> int:
    """Returns the int that an environment variable holds, which ``torchrun`` sets.

    Raises:
        RuntimeError: it holds something else.
    """
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        # Not a ValueError: argparse says of these no more than that the option is invalid.
        raise RuntimeError(f"environment variable {name} must be an int, got {text!r}") from None


def this_rank() -> int:
    """Number of this process under ``torchrun``; 0 without it."""
    return environment("RANK", 0)


def cuda_problem() -> str:
    """Why DCLS cannot train on CUDA here; empty if it can."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return "this torch is built without CUDA"
        return "torch finds no CUDA device"
    if not _backend.is_native("cuda"):
        return ""  # torch expressions compute there
    status = _backend.native.cuda_status()
    return "" if status["available"] else f"DCLS cannot use CUDA: {status['reason']}"


def choose_device(name: str) -> torch.device:
    """Returns the device of this process.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``. ``auto`` is ``cuda`` where torch and DCLS
            can both use it, and ``cpu`` elsewhere. Under ``torchrun`` ``cuda`` is the device of the
            local rank.

    Raises:
        argparse.ArgumentTypeError: the name is not one of these, or there is no such device.
    """
    kind, colon, number = name.partition(":")
    if name == "auto":
        kind = "cpu" if cuda_problem() else "cuda"
    elif name not in ("cpu", "cuda") and not re.fullmatch("cuda:[0-9]{1,4}", name):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    problem = cuda_problem()
    count, here = torch.cuda.device_count(), environment("LOCAL_WORLD_SIZE", 1)
    if not problem:
        if here > 1 and colon:
            problem = "it must be cuda under torchrun, a GPU for each process"
        elif here > count:
            problem = f"{here} processes share {count} GPU(s): one each"
        elif colon and int(number) >= count:
            problem = f"the last of {count} device(s) is cuda:{count - 1}"
    if problem:
        raise argparse.ArgumentTypeError(f"got {name!r}, but {problem}")
    if colon:
        return torch.device("cuda", int(number))
    return torch.device(
        "cuda", environment("LOCAL_RANK", 0) if here > 1 else torch.cuda.current_device()
    )


# The options


def _checked(
    kind: type[Number], wanted: str, accepts: Callable[[Number], bool]
) -> Callable[[str], Number]:
    """A converter for argparse: ``kind(text)``, if that is what is wanted."""

    def convert(text: str) -> Number:
        value = kind(text)
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {value!r}")
        return value

    convert.__name__ = kind.__name__  # for argparse's own "invalid int value"
    return convert


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    wanted = f"an integer at least {low}" if high is None else f"an integer from {low} to {high}"
    return _checked(int, wanted, lambda value: low <= value and (high is None or value <= high))


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    return _checked(str, f"one of {', '.join(names)}", lambda name: name in names)


def _picture(text: str) -> Path:
    """Converts to a path that can be written to; leaves nothing behind."""
    path, got = Path(text), f"got {text!r}"
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        suffixes = ", ".join(PICTURE_SUFFIXES)
        raise argparse.ArgumentTypeError(f"must end in one of {suffixes}, {got}")
    if this_rank() > 0:
        return path
    try:
        # What a link leads to: the link itself stays.
        target = path.resolve()
        if not target.parent.is_dir():
            problem = f"{got}, but there is no directory {str(target.parent)!r}"
            raise argparse.ArgumentTypeError(problem)
        # Permission bits do not tell all (read-only file systems, root): try.
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise argparse.ArgumentTypeError(f"{got}, which is no regular file")
            target.open("ab").close()
        # The picture is made beside the file that it replaces.
        tempfile.TemporaryFile(dir=target.parent).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        problem = f"{got}, which cannot be written: {getattr(error, 'strerror', None) or error}"
        raise argparse.ArgumentTypeError(problem) from error
    return path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the demo, one for each setting."""

    def option(
        flag: str, metavar: str, convert: Callable[[str], object], text: str, default: str = ""
    ) -> None:
        name = flag[2:].replace("-", "_")
        # Left out, it is None, and ``from_options`` takes the default of ``Settings``.
        default = default or str(getattr(Settings, name))
        parser.add_argument(
            flag, type=convert, metavar=metavar, help=f"{text} (default: {default})"
        )

    def recipes(name: str) -> str:
        return ", ".join(f"{getattr(one.recipe, name)} for {key}" for key, one in TASKS.items())

    size = _checked(
        int,
        f"an odd integer from 3 to {MAX_KERNEL_SIZE}",
        lambda n: 3 <= n <= MAX_KERNEL_SIZE and n % 2 == 1,
    )
    rate = _checked(float, "a finite, positive number", lambda x: 0 < x < math.inf)
    device = "cpu, cuda, cuda:N, or auto: cuda where torch and DCLS can use it, else cpu"
    picture = f"the picture, {', '.join(PICTURE_SUFFIXES)}; replaces what is there"
    tasks = "; ".join(f"{name}: {task.title}" for name, task in TASKS.items())
    either = f"{DEFAULT_TASK}, or digits where an option says 'digits only'"
    option("--task", "NAME", _one_of(TASKS), tasks, either)
    option("--seeds", "N", _integer(1, 1000), "trainings of each network")
    option("--seed", "N", _integer(0, 2**32 - 1), "the first seed, of initial values and order")
    option("--epochs", "N", _integer(1), "passes over the examples", recipes("epochs"))
    option(
        "--batch-size", "N", _integer(1), "examples a step, over all processes together",
        recipes("batch_size"),
    )  # fmt: skip
    option("--lr", "X", rate, "peak learning rate of weights", recipes("lr"))
    option("--device", "NAME", choose_device, device, "auto")
    option("--output", "PATH", _picture, picture)
    option("--dtype", "NAME", _one_of(DTYPES), " or ".join(DTYPES))
    option(
        "--threads", "N", _integer(1, 1024),
        "CPU threads of a process; networks so small gain nothing from a second one",
    )  # fmt: skip
    only = "digits only: "
    option("--version", "NAME", _one_of(VERSIONS), f"{only}interpolation: {', '.join(VERSIONS)}")
    option(
        "--kernel-size",
        "N",
        size,
        f"{only}side of the DCLS kernels, odd, at most {MAX_KERNEL_SIZE}",
    )
    option(
        "--kernel-count", "N", int, f"{only}elements of a DCLS kernel",
        "as many as the 49 weights of a plain 7x7 kernel pay for: 16, or 9 if an element has a "
        "width, too; fewer in small kernels",
    )  # fmt: skip
    start = f"{only}where positions start: {', '.join(NAMES)}"
    option("--init-positions", "NAME", _one_of(NAMES), start)
    parser.add_argument(
        "--no-baseline",
        action="store_false",
        dest="baseline",
        help="leave out the networks without learned positions (default: train them, too)",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="no progress bar and no line for each training, only the result (default: show them)",
    )


def from_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    """The settings that the options of a command line ask for; ``parser`` ends on a bad one."""
    given = {
        field.name: value
        for field in fields(Settings)
        if (value := getattr(options, field.name)) is not None
    }
    of_digits = [name for name in OF_DIGITS if name in given]
    if of_digits and given.setdefault("task", "digits") != "digits":
        flag = of_digits[0].replace("_", "-")
        parser.error(f"argument --{flag}: only --task digits has it")
    try:
        # Only now: a device that is there by default may be missing.
        device = choose_device("auto") if "device" not in given else given["device"]
        given.setdefault("output", _picture(str(Settings.output)))
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --output: {error}")
    settings = Settings(**{**given, "device": device})
    most = most_elements(settings.version, settings.kernel_size)
    count = settings.kernel_count
    if count is not None and not 1 <= count <= most:
        parser.error(f"argument --kernel-count: must be an integer from 1 to {most}, got {count}")
    return settings
