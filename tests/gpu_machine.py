"""Programs that play a machine with a GPU, and runs of scripts/gpu_check.sh with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"

#: Plays nvidia-smi, nvcc, compute-sanitizer, cmake, ctest and, but for gpu_report.py, python.
#: A file $FAKES/NAME holds shell commands for the step NAME instead of what it does otherwise.
PLAYER = r"""#!/bin/bash
me=$(basename "$0"); all="$me $*"
instead() { if [ -f "$FAKES/$1" ]; then echo "ran $1" >>"$FAKES/log"; . "$FAKES/$1"; exit; fi; }
case $all in
  "nvidia-smi --list-gpus") instead list-gpus; echo "GPU 0: NVIDIA Imaginary 100 (UUID: none)" ;;
  nvidia-smi*driver_version*) echo 999.1 ;;
  nvcc*) echo "Cuda compilation tools, release 13.7, V13.7.1" ;;
  python3*gpu_report.py*) exec -a "$0" @PYTHON@ "$@" ;;
  python3*get_device_capability*) instead ask-torch
    echo '{"torch": "9.9", "cuda_of_torch": "13.7", "gpu": "NVIDIA Imaginary 100",'\
         '"compute_capability": "9.0"}' ;;
  python3*find_spec*) instead ask-modules ;;
  python3*"pip install"*) echo "$all" >>"$FAKES/log"; instead build
    while [ "$1" != --target ]; do shift; done; mkdir -p "$2" ;;
  cmake*) echo "$all" >>"$FAKES/log" ;;
  ctest*) instead ctest; echo "100% tests passed, 0 tests failed out of 9" ;;
  compute-sanitizer*) instead "$2"; echo "$all" >>"$FAKES/log"
    "${@: -4}"; echo "========= ERROR SUMMARY: 0 errors" ;;
  python3*"gpu_kernels.py --only "*) echo "kernels $3" >>"$FAKES/log" ;;
  python3*"pytest"*"not gpu") instead pytest-rest; echo "7 passed in 1s" ;;
  python3*"pytest"*"-m gpu "*) name=${all#*--junitxml=}; name=${name%%.xml*}; instead "${name##*/}"
    echo "345 passed, 1 skipped in 1s" ;;
  python3*bench_*.py*) instead bench
    while [ "$1" != --json ]; do shift; done
    echo '{"benchmark": "construct"}' >"$2"; echo "median 1.0 [0.9-1.1] ms" ;;
  *) echo "nobody plays: $all" >&2; exit 99 ;;
esac
"""


def make_fakes(tmp_path: Path) -> Path:
    """A folder of programs that play a machine with a GPU."""
    folder = tmp_path / "fakes"
    programs = folder / "programs"
    programs.mkdir(parents=True)
    names = ["nvidia-smi", "nvcc", "python3", "cmake", "ctest", "ninja", "compute-sanitizer"]
    for name in names:
        file = programs / name
        file.write_text(PLAYER.replace("@PYTHON@", sys.executable))
        file.chmod(0o755)
    for name in ("bash", "basename", "dirname", "sed", "git", "mkdir", "sleep"):
        program = shutil.which(name)
        if program is not None:
            (programs / name).symlink_to(program)
    return folder


def arguments(fakes: Path, *more: str) -> list[str]:
    output, work = fakes.parent / "output", fakes.parent / "work"
    return ["bash", str(SCRIPT), "--output", str(output), "--work", str(work), *more]


def environment(fakes: Path) -> dict[str, str]:
    decided = ("PYTHON", "CUDA_HOME", "DCLS_COMMIT")
    kept = {k: v for k, v in os.environ.items() if k not in decided}
    return {
        **kept,
        "PATH": str(fakes / "programs"),
        "FAKES": str(fakes),
        "CUDA_HOME": str(fakes / "none"),
    }


def run(fakes: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(fakes, *more),
        env=environment(fakes),
        capture_output=True,
        text=True,
        timeout=60,
    )


def report(fakes: Path) -> dict:
    return json.loads((fakes.parent / "output/gpu-check-nvidia-imaginary-100.json").read_text())


def statuses(fakes: Path) -> dict[str, str]:
    return {step["name"]: step["status"] for step in report(fakes)["steps"]}


def log(fakes: Path) -> str:
    file = fakes / "log"
    return file.read_text() if file.is_file() else ""
