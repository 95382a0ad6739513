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
#: Beside glibc: the newest versions of gcc 8's runtime libraries, which such systems have.
RUNTIME_LIMITS = {
    "CXXABI": (1, 3, 11),
    "GCC": (7, 0, 0),
    "GLIBCXX": (3, 4, 24),
    "GOMP": (4, 5),
    "OMP": (4, 5),
}
NEWEST_GLIBC = 28  # of 2.28: docs/install.md promises it
#: What usually brings a version that is too new.
REASONS = {
    "CXXABI_1.3.13": "gcc 11's headers copy an exception_ptr inline",
    "GLIBCXX_3.4.29": "gcc 11's headers check the size of an array",
    "GLIBC_2.32": "gcc's headers ask glibc whether there is one thread only",
    "GLIBC_2.33": "stat and its kin became functions of libc",
    "GLIBC_2.34": "libpthread, libdl and librt became parts of libc",
    "GLIBC_2.38": "strtol and its kin read binary numbers as C23 has it",
}
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


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def needed_symbols(library: Path) -> list[tuple[str, str, str]]:
    """Returns what a library takes of others by version: symbol, version (GLIBC_2.17), file."""
    text = _run("readelf", "--version-info", "--wide", str(library)).partition("needs section")[2]
    versions, file = {}, ""
    for line in text.splitlines():
        if found := re.search(r"File: (\S+)", line):
            file = found[1]
        elif found := re.search(r"Name: (\S+) .*Version: (\d+)", line):
            versions[found[2]] = (found[1], file)
    symbols = _run("readelf", "--dyn-syms", "--wide", str(library))
    named = re.findall(r" UND (\S+?)@\S+ \((\d+)\)", symbols)
    # A version without a symbol is asked for all the same.
    named += [("(no symbol)", index) for index in versions.keys() - {i for _, i in named}]
    return sorted((symbol, *versions[index]) for symbol, index in named)


def check_symbols(library: Path, glibc: int) -> None:
    """Checks that the library loads where glibc 2.``glibc`` and the libraries of gcc 8 are."""
    limits = {"GLIBC": (2, glibc), **RUNTIME_LIMITS}
    problems = []
    for symbol, version, file in needed_symbols(library):
        name, _, number = version.partition("_")
        numeric = re.fullmatch(r"[\d.]+", number)
        if name in limits and numeric and _version(number) <= limits[name]:
            continue
        reason = REASONS.get(version, "the machine that built it has newer libraries")
        problems.append(f"\n  {symbol}@{version} of {file}: {reason}")
    _require(not problems, f"{library.name} needs what is too new:" + "".join(problems))


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
    glibc = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", wheel.name)]
    _require(bool(glibc), "not a manylinux wheel: auditwheel was not run")
    _require(min(glibc) <= NEWEST_GLIBC, f"asks for glibc 2.{min(glibc)}, not 2.{NEWEST_GLIBC}")
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
        root = Path(directory)
        bundled = [str(p.relative_to(root)) for p in root.glob("*.libs/*")]
        _require(not bundled, f"libraries were bundled: {bundled}")
        (metadata,) = root.glob("*.dist-info/METADATA")
        check_requirements(metadata.read_text(encoding="utf-8"))
        check_package(root / "DCLS")
        for library in (root / "DCLS").rglob("*.so"):
            check_symbols(library, min(glibc))
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
