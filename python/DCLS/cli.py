"""The command ``dcls``: its arguments, its errors, its exit codes.

Exit codes: 0 done, 1 the training failed or this installation lacks what the command is for, 2 the
command line asks for what cannot be, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

import DCLS
from DCLS._spec import VERSIONS
from DCLS.demo import MissingExtraError, check_extras
from DCLS.demo.distributed import DeviceError, choose_device, this_rank
from DCLS.demo.settings import DTYPES, MAX_KERNEL_SIZE, SettingError, Settings

MAX_THREADS = 1024
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, said once however many processes there are."""

    def error(self, message: str) -> NoReturn:
        if this_rank() == 0:
            sys.stderr.write(f"{self.prog}: error: {message}\n")
        raise SystemExit(2)


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs",
        type=int,
        default=Settings.epochs,
        metavar="N",
        help="passes over the training images (default: %(default)s)",
    )
    parser.add_argument(
        "--version",
        default=Settings.version,
        metavar="NAME",
        help=f"interpolation: {', '.join(VERSIONS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:N, or auto: cuda where there is one that torch and DCLS can use, "
        "else cpu (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=Settings.seed,
        metavar="N",
        help="of initial values and order of images (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("dcls-demo.png"),
        metavar="PATH",
        help=f"the picture, {', '.join(PICTURE_SUFFIXES)}; replaces what is there "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=Settings.batch_size,
        metavar="N",
        help="images a step, over all processes together (default: %(default)s)",
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=Settings.lr,
        metavar="X",
        help="peak learning rate; five times as much for positions (default: %(default)s)",
    )
    parser.add_argument(
        "--kernel-size",
        type=int,
        default=Settings.kernel_size,
        metavar="N",
        help=f"side of the DCLS kernels, odd, at most {MAX_KERNEL_SIZE} (default: %(default)s)",
    )
    parser.add_argument(
        "--kernel-count",
        type=int,
        metavar="N",
        help="elements of a DCLS kernel (default: as many as the 49 weights of a plain 7x7 kernel "
        "pay for, 9 with widths, 16 without; less for small kernels)",
    )
    parser.add_argument(
        "--dtype",
        default=Settings.dtype,
        metavar="NAME",
        help=f"{' or '.join(DTYPES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
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


def _make_parser() -> tuple[_Parser, argparse.ArgumentParser]:
    parser = _Parser(
        prog="dcls",
        description="Dilated Convolution with Learnable Spacings for PyTorch.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"DCLS {DCLS.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train a small network with DCLS layers on handwritten digits",
        description="Trains a small ConvNeXt-like network with DCLS depthwise layers on "
        "scikit-learn's handwritten digits, beside the same network with plain depthwise layers "
        "and at least as many parameters. Ends with a table and a picture. Also runs data-parallel:"
        " torchrun --nproc_per_node=2 -m DCLS demo",
        allow_abbrev=False,
    )
    _add_demo_arguments(demo)
    info = commands.add_parser(
        "info",
        help="print what a bug report needs",
        description="Prints versions, how the native library was built, and what it found here.",
        allow_abbrev=False,
    )
    info.add_argument("--json", action="store_true", help="as JSON (default: as text)")
    commands.add_parser(
        "cmake-dir",
        help="print the directory of DCLSConfig.cmake",
        description="Prints the directory of DCLSConfig.cmake, for the DCLS_DIR of a CMake project "
        "that calls find_package(DCLS).",
        allow_abbrev=False,
    )
    return parser, demo


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise SettingError("threads", f"must be an integer from 1 to {MAX_THREADS}, got {threads}")


def _check_output(path: Path) -> None:
    """Raises SettingError unless a picture can be written to ``path``; leaves nothing behind."""
    got = f"got {str(path)!r}"
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise SettingError("output", f"must end in one of {', '.join(PICTURE_SUFFIXES)}, {got}")
    try:
        if not path.parent.is_dir():
            raise SettingError("output", f"{got}, but there is no directory {str(path.parent)!r}")
        existed = path.exists()
        # Permission bits do not tell all (read-only file systems, root): try.
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        problem = f"{got}, which cannot be written: {error.strerror}"
        raise SettingError("output", problem) from error


def _demo(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        settings = Settings(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            lr=arguments.lr,
            version=arguments.version,
            kernel_size=arguments.kernel_size,
            kernel_count=arguments.kernel_count,
            seed=arguments.seed,
            dtype=arguments.dtype,
            baseline=arguments.baseline,
        )
        _check_threads(arguments.threads)
        device = choose_device(arguments.device)
        if this_rank() == 0:
            _check_output(arguments.output)
        check_extras()
    except SettingError as error:
        parser.error(f"argument --{error.name.replace('_', '-')}: {error.problem}")
    except DeviceError as error:
        parser.error(f"argument --device: {error}")
    except MissingExtraError as error:
        parser.error(str(error))
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    # Only now that the packages they need are known to be there.
    from DCLS.demo.run import run
    from DCLS.demo.train import DivergedError

    try:
        run(settings, device, arguments.output, quiet=arguments.quiet)
    except DivergedError as error:
        if this_rank() == 0:
            sys.stderr.write(f"{parser.prog}: error: {error}; try a lower --lr\n")
        return 1
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from DCLS import info

    facts = info.collect()
    text = json.dumps(facts, indent=2) if arguments.json else info.render(facts)
    sys.stdout.write(f"{text}\n")
    return 0


def _cmake_dir() -> int:
    from DCLS.cmake import config_dir

    try:
        directory = config_dir()
    except FileNotFoundError as error:
        sys.stderr.write(f"dcls cmake-dir: error: {error}\n")
        return 1
    sys.stdout.write(f"{directory}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command ``dcls``.

    Args:
        argv: its arguments; None for those of the process.

    Returns:
        The exit code, 0 if all went well.

    Raises:
        SystemExit: with 2 and a line on stderr for a bad command line, 0 for --help and --version.
    """
    parser, demo_parser = _make_parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "info":
            return _info(arguments)
        if arguments.command == "cmake-dir":
            return _cmake_dir()
        return _demo(arguments, demo_parser)
    except KeyboardInterrupt:
        sys.stderr.write("dcls: interrupted\n")
        return 130
