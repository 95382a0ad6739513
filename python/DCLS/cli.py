"""The command ``dcls``: its arguments, its errors, its exit codes.

Exit codes: 0 done, 1 the training, the picture or a check failed or this installation lacks what
the command is for, 2 the command line or an environment variable asks for what cannot be, 130
interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import DCLS
from DCLS.demo import missing_packages
from DCLS.demo.settings import add_options, from_options, this_rank


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, said once however many processes there are."""

    def error(self, message: str) -> NoReturn:
        if this_rank() == 0:
            sys.stderr.write(f"{self.prog}: error: {message}\n")
        raise SystemExit(2)


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
        help="train small networks with learned positions, and others of their size",
        description="Trains a small network with learned positions or delays beside networks with "
        "at least as many parameters: one with fixed regular positions, one with plain "
        "convolutions. Ends with a table and a picture. Also runs data-parallel: torchrun "
        "--nproc_per_node=2 -m DCLS demo",
        allow_abbrev=False,
    )
    add_options(demo)
    info = commands.add_parser(
        "info",
        help="print what a bug report needs",
        description="Prints versions, how the native library was built, and what it found here.",
        allow_abbrev=False,
    )
    info.add_argument("--json", action="store_true", help="as JSON (default: as text)")
    check = commands.add_parser(
        "check",
        help="check in a minute that DCLS computes right here, and how fast",
        description="Compares every operator and dtype with the reference in plain torch, repeats "
        "and captures training steps, and times layers beside torch's convolution. Prints a table "
        "and a verdict. The exit code is 1 if something is wrong.",
        allow_abbrev=False,
    )
    check.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where (default: auto, a GPU if there is one)",
    )
    check.add_argument(
        "--output", type=Path, metavar="FILE", help="write all results there, too, as JSON"
    )
    commands.add_parser(
        "cmake-dir",
        help="print the directory of DCLSConfig.cmake",
        description="Prints the directory of DCLSConfig.cmake, for the DCLS_DIR of a CMake project "
        "that calls find_package(DCLS).",
        allow_abbrev=False,
    )
    commands.add_parser(
        "pkg-config-dir",
        help="print the directory of dcls.pc",
        description="Prints the directory of dcls.pc, for the PKG_CONFIG_PATH of pkg-config.",
        allow_abbrev=False,
    )
    return parser, demo


def _demo(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    settings = from_options(parser, options)
    if missing := missing_packages(settings.make_task().packages):
        install = 'install with: pip install "DCLS[demo]"'
        parser.error(f"the demo needs {', '.join(missing)}; {install}")

    # Only now that the packages it needs are known to be there.
    from DCLS.demo import train

    try:
        train.run(settings)
    except train.DivergedError as error:
        if this_rank() == 0:
            sys.stderr.write(f"{parser.prog}: error: {error}; try a lower --lr\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{parser.prog}: error: {settings.output} cannot be written: {error}\n")
        return 1
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from DCLS import info

    facts = info.collect()
    text = json.dumps(facts, indent=2) if arguments.json else info.render(facts)
    sys.stdout.write(f"{text}\n")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    import torch

    from DCLS import check, info

    def error(text: str, code: int) -> int:
        sys.stderr.write(f"dcls check: error: {text}\n")
        return code

    gpu = torch.cuda.is_available()
    if arguments.device == "cuda" and not gpu:
        return error("argument --device: torch finds no CUDA device", 2)
    if arguments.output is not None and not arguments.output.parent.is_dir():
        return error(f"argument --output: there is no folder {arguments.output.parent}", 2)
    device = torch.device("cpu")
    if gpu and arguments.device != "cpu":
        device = torch.device("cuda", torch.cuda.current_device())
        if not (cuda := info.collect()["cuda"])["available"]:
            return error(f"DCLS cannot use the GPU: {cuda['reason']}", 1)
    checked = check.run(device)
    sys.stdout.write(f"{check.render(checked)}\n")
    if arguments.output is not None:
        try:
            arguments.output.write_text(json.dumps(checked, indent=1) + "\n", encoding="utf-8")
        except OSError as failure:
            return error(f"{arguments.output} cannot be written: {failure}", 1)
    return 0 if checked["verdict"] == "pass" else 1


def _print_directory(command: str) -> int:
    from DCLS.cmake import config_dir, pkg_config_dir

    try:
        directory = config_dir() if command == "cmake-dir" else pkg_config_dir()
    except FileNotFoundError as error:
        sys.stderr.write(f"dcls {command}: error: {error}\n")
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
    try:
        arguments = parser.parse_args(argv)
        if arguments.command == "info":
            return _info(arguments)
        if arguments.command == "check":
            return _check(arguments)
        if arguments.command in ("cmake-dir", "pkg-config-dir"):
            return _print_directory(arguments.command)
        return _demo(arguments, demo_parser)
    except (RuntimeError, ValueError) as error:
        # Those of torchrun, and DCLS_SIMD, for which the native library has no type of its own.
        if not str(error).startswith("environment variable"):
            raise
        sys.stderr.write(f"dcls: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("dcls: interrupted\n")
        return 130
