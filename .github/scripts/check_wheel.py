"""Checks what a wheel of DCLS must and must not contain. Needs binutils, no Python package.

python check_wheel.py [--cuda] WHEEL...
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

MAX_BYTES = 20_000_000
ARCHITECTURE_LIST = Path(__file__).parents[2] / "cmake" / "cuda_architectures.txt"
SUPPORT_FILES = (
    "include/dcls/construct.hpp",
    "include/dcls/version.hpp",
    "share/cmake/DCLS/DCLSConfig.cmake",
    "share/cmake/DCLS/DCLSConfigVersion.cmake",
    "share/cmake/DCLS/DCLSTargets.cmake",
    "share/pkgconfig/dcls.pc",
    "py.typed",
)


class WheelError(Exception):
    """The wheel is not fit to be published."""


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise WheelError(problem)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def exported_symbols(library: Path) -> list[str]:
    """Returns the demangled names that a shared library defines for others."""
    lines = _run("nm", "-D", "--defined-only", "-C", str(library)).splitlines()
    return [line.split(maxsplit=2)[2] for line in lines]


def _dynamic(library: Path, kind: str) -> list[str]:
    return re.findall(rf"\({kind}\).*\[(.*)\]", _run("readelf", "-dW", str(library)))


def check_package(package: Path) -> None:
    """Checks the directory ``DCLS`` of an installation or of an unpacked wheel."""
    extensions = list(package.glob("_C.*.so"))
    _require(len(extensions) == 1, f"{package} must hold one _C.*.so, got {extensions}")
    library = package / "lib" / "libdcls.so"
    _require(library.is_file(), f"{library} is missing")
    for name in SUPPORT_FILES:
        _require((package / name).is_file(), f"{package / name} is missing")
    others = {str(f) for f in package.rglob("*.so*")} - {str(extensions[0]), str(library)}
    _require(not others, f"shared libraries that do not belong here: {sorted(others)}")

    symbols = exported_symbols(extensions[0])
    _require(symbols == ["PyInit__C"], f"{extensions[0].name} exports {symbols}")
    ours = re.compile(r"((typeinfo|typeinfo name|vtable) for )?dcls::")
    foreign = [symbol for symbol in exported_symbols(library) if not ours.match(symbol)]
    _require(not foreign, f"libdcls.so exports {foreign}")

    rpath = _dynamic(extensions[0], "RUNPATH") + _dynamic(extensions[0], "RPATH")
    _require(rpath == ["$ORIGIN/lib"], f"{extensions[0].name} has the library path {rpath}")
    rpath = _dynamic(library, "RUNPATH") + _dynamic(library, "RPATH")
    _require(not rpath, f"libdcls.so has the library path {rpath}, needs none")


def required_architectures() -> tuple[set[str], int]:
    """Returns what every wheel has machine code for, and the newest that it may have PTX for."""
    lines = ARCHITECTURE_LIST.read_text(encoding="utf-8").splitlines()
    listed = [line.split() for line in lines if line and not line.startswith("#")]
    # What newer toolkits have dropped is only in some of the wheels.
    machine_code = {capability for capability, _, end, _ in listed if end == "-"}
    return machine_code, max(int(capability) for capability, *_, ptx in listed if ptx == "PTX")


def check_architectures(library: Path) -> None:
    """Checks that there is code for every listed GPU, and PTX for those to come."""
    cubins = set(re.findall(r"\.sm_(\d+)\.cubin", _run("cuobjdump", "--list-elf", str(library))))
    machine_code, newest_ptx = required_architectures()
    missing = machine_code - cubins
    _require(not missing, f"no code for compute capability {sorted(missing)}, only {cubins}")
    ptx = re.findall(r"\.sm_(\d+)\.ptx", _run("cuobjdump", "--list-ptx", str(library)))
    _require(bool(ptx), "no PTX")
    _require(min(map(int, ptx)) <= newest_ptx, f"PTX for {ptx} leaves GPUs without code")


def check_requirements(metadata: str) -> None:
    """Checks that installing DCLS leaves the user's torch alone."""
    requirements = Parser().parsestr(metadata).get_all("Requires-Dist") or []
    torch = [r for r in requirements if re.match(r"torch\b", r) and "extra ==" not in r]
    lower_bound = len(torch) == 1 and re.fullmatch(r"torch\s*>=\s*[\d.]+", torch[0])
    _require(bool(lower_bound), f"torch must have a lower bound and no other, got {torch}")


def check_wheel(wheel: Path, *, cuda: bool) -> None:
    """Checks a wheel as it would be uploaded."""
    size = wheel.stat().st_size
    _require(size < MAX_BYTES, f"{size} bytes, more than {MAX_BYTES}")
    _require("-manylinux_2_" in wheel.name, "not a manylinux wheel: auditwheel was not run")
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
        root = Path(directory)
        bundled = [str(p.relative_to(root)) for p in root.glob("*.libs/*")]
        _require(not bundled, f"libraries were bundled: {bundled}")
        (metadata,) = root.glob("*.dist-info/METADATA")
        check_requirements(metadata.read_text(encoding="utf-8"))
        check_package(root / "DCLS")
        if cuda:
            check_architectures(root / "DCLS" / "lib" / "libdcls.so")
    sys.stdout.write(f"{wheel.name}: {size} bytes, all checks passed\n")


def main() -> int:
    """Runs the checks; the exit code is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument("--cuda", action="store_true", help="it must hold the CUDA kernels")
    arguments = parser.parse_args()
    try:
        for wheel in arguments.wheels:
            check_wheel(wheel, cuda=arguments.cuda)
    except WheelError as error:
        sys.stderr.write(f"{wheel.name}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
