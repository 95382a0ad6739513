"""The options of ``dcls demo``: defaults, limits, help, and the device that they lead to."""

from __future__ import annotations

import argparse
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import torch

from DCLS import _backend
from DCLS._spec import SIGMA_VERSIONS, VERSIONS
from DCLS._types import Version
from DCLS.nn.initial import NAMES, InitPositions

#: Side of the plain network's depthwise kernels, as in ConvNeXt.
PLAIN_KERNEL_SIZE = 7
#: The depthwise layers see maps of 12x12: digits of 24x24 behind a stem of stride 2. A kernel with
#: a longer side than this has cells that never meet the map.
MAX_KERNEL_SIZE = 2 * 12 - 1
DTYPES = {"float32": torch.float32, "float64": torch.float64}
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")

Number = TypeVar("Number", int, float, str)


def numbers_per_element(version: str) -> int:
    """Learnable numbers of one element in 2-D: its weight, two positions and perhaps two widths."""
    return 5 if version in SIGMA_VERSIONS else 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run of the demo; ``dcls demo --help`` says what each one does.

    ``batch_size`` counts the images of all processes. ``kernel_count`` may be None, see
    ``elements``. ``threads`` may be None for torch's own choice.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-2
    version: Version = "gauss"
    kernel_size: int = 17
    kernel_count: int | None = None
    init_positions: InitPositions = "spread"
    seed: int = 0
    dtype: str = "float32"
    baseline: bool = True
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    threads: int | None = None
    output: Path = Path("dcls-demo.png")
    quiet: bool = False

    @property
    def most_elements(self) -> int:
        """So many elements have as many learnable numbers as the dense kernel has, or fewer."""
        return self.kernel_size**2 // numbers_per_element(self.version)

    @property
    def elements(self) -> int:
        """Elements of a DCLS kernel: ``kernel_count``, or what a plain kernel's weights pay for."""
        if self.kernel_count is not None:
            return self.kernel_count
        affordable = PLAIN_KERNEL_SIZE**2 // numbers_per_element(self.version)
        return min(affordable, self.most_elements)

    @property
    def plain_kernel_size(self) -> int:
        """Side of the plain kernels: 7, or the next odd size that has as many parameters as ours.

        So the plain network is never the smaller one, whatever ``kernel_count`` asks for.
        """
        size = PLAIN_KERNEL_SIZE
        while size**2 < self.elements * numbers_per_element(self.version):
            size += 2
        return size


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

    def option(flag: str, metavar: str, convert: Callable[[str], object], text: str) -> None:
        value = "auto" if flag == "--device" else getattr(Settings, flag[2:].replace("-", "_"))
        # A default that is text is converted, and so checked, like a value from the command line.
        parser.add_argument(
            flag,
            type=convert,
            default=str(value),
            metavar=metavar,
            help=f"{text} (default: %(default)s)",
        )

    size = _checked(
        int,
        f"an odd integer from 3 to {MAX_KERNEL_SIZE}",
        lambda n: 3 <= n <= MAX_KERNEL_SIZE and n % 2 == 1,
    )
    rate = _checked(float, "a finite, positive number", lambda x: 0 < x < math.inf)
    device = "cpu, cuda, cuda:N, or auto: cuda where torch and DCLS can use it, else cpu"
    picture = f"the picture, {', '.join(PICTURE_SUFFIXES)}; replaces what is there"
    option("--epochs", "N", _integer(1), "passes over the training images")
    option("--version", "NAME", _one_of(VERSIONS), f"interpolation: {', '.join(VERSIONS)}")
    option("--device", "NAME", choose_device, device)
    option("--seed", "N", _integer(0, 2**32 - 1), "of initial values and order of images")
    option("--output", "PATH", _picture, picture)
    option("--batch-size", "N", _integer(1), "images a step, over all processes together")
    option("--lr", "X", rate, "peak learning rate; five times as much for positions and widths")
    option("--kernel-size", "N", size, f"side of the DCLS kernels, odd, at most {MAX_KERNEL_SIZE}")
    parser.add_argument(
        "--kernel-count",
        type=int,
        metavar="N",
        help="elements of a DCLS kernel (default: as many as the 49 weights of a plain 7x7 kernel "
        "pay for: 16, or 9 if an element has a width, too; fewer in small kernels)",
    )
    start = f"where positions start: {', '.join(NAMES)}"
    option("--init-positions", "NAME", _one_of(NAMES), start)
    option("--dtype", "NAME", _one_of(DTYPES), " or ".join(DTYPES))
    parser.add_argument(
        "--threads",
        type=_integer(1, 1024),
        metavar="N",
        help="CPU threads of a process (default: torch's own choice)",
    )
    parser.add_argument(
        "--no-baseline",
        action="store_false",
        dest="baseline",
        help="leave out the plain network (default: train both)",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="no progress bar and no line for each epoch, only the result (default: show them)",
    )


def from_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    """The settings that the options of a command line ask for; ``parser`` ends on a bad one."""
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    if not 1 <= settings.elements <= settings.most_elements:
        wanted = f"an integer from 1 to {settings.most_elements}, got {settings.elements}"
        parser.error(f"argument --kernel-count: must be {wanted}")
    return settings
