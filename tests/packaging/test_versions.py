"""The lists of interpolation versions and dtypes, and all that reads it or writes it down."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import DCLS
from DCLS import _C, _spec, reference

ROOT = Path(__file__).parents[2]
OF_THE_PAPERS = ("v0", "v1", "max", "gauss")
INFOS = {info.name: info for info in _C.versions()}

sources = pytest.mark.skipif(not (ROOT / "src").is_dir(), reason="takes a source tree")


def test_the_list() -> None:
    assert tuple(INFOS) == DCLS.VERSIONS == _spec.VERSIONS
    assert len(set(INFOS)) == len(_C.versions())
    for name, info in INFOS.items():
        assert info.has_width == (name in _spec.SIGMA_VERSIONS) == (info.most_taps == 0)
        assert info.smallest_width == _spec.SIGMA_MIN[name]
        assert (info.smallest_width > 0) == info.has_width


def test_the_versions_of_dcls_011_are_what_they_were() -> None:
    # Indices, too: exported programs hold names, but a C++ program that was not compiled again
    # holds the numbers.
    flags = [(i.name, i.normalised, i.has_width, i.smallest_width) for i in _C.versions()[:4]]
    assert flags == [
        ("v0", False, False, 0.0),
        ("v1", True, False, 0.0),
        ("max", True, True, 1.0),
        ("gauss", True, True, 0.27),
    ]


def test_the_oracle_has_a_formula_for_each() -> None:
    assert tuple(reference._VERSIONS) == DCLS.VERSIONS
    for name, info in INFOS.items():
        assert (name in _spec.NORMALISED) == info.normalised


def test_a_version_with_a_width_needs_an_initial_one() -> None:
    assert _spec.INITIAL_SIG.keys() == _spec.SIGMA_VERSIONS


def test_the_dtypes_are_those_of_torch() -> None:
    dtypes = [getattr(torch, info.name) for info in _C.dtypes()]
    assert dtypes == list(_spec.DTYPES)
    assert list(_spec.DTYPES.values()) == list(range(len(dtypes)))
    assert dtypes == [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    assert [info.bytes for info in _C.dtypes()] == [dtype.itemsize for dtype in dtypes]


# What is written down


def table(page: str, first_cell: str) -> dict[str, list[str]]:
    """The rows of the table whose header begins with ``first_cell``, by version."""
    text = (ROOT / page).read_text(encoding="utf-8")
    match = re.search(rf"^\| {first_cell} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert match is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in match[1].splitlines()]
    return {row[0].split("`")[1]: row[1:] for row in rows}


@sources
def test_the_guide_has_a_row_for_each() -> None:
    rows = table("README.md", "`version`")
    assert tuple(rows) == DCLS.VERSIONS
    for name, (formula, width, divided, source) in rows.items():
        first = {"v0": "first paper"}.get(name, "second paper")
        assert source == (first if name in OF_THE_PAPERS else "this package")
        assert width == ("yes" if INFOS[name].has_width else "no")
        assert divided == ("yes" if INFOS[name].normalised else "no")
        smallest = re.search(r"abs\(SIG\) \+ ([\d.]+)", formula)
        assert (float(smallest[1]) if smallest else 0.0) == INFOS[name].smallest_width


@sources
def test_the_page_of_the_method_has_the_derivatives_of_each() -> None:
    rows = table("docs/method.md", "version")
    assert tuple(rows) == DCLS.VERSIONS
    for name, (_, by_width, _) in rows.items():
        assert bool(by_width) == INFOS[name].has_width


def test_no_list_in_the_code_leaves_one_out() -> None:
    """Where the code names three versions or more in a row, it names all."""
    name = rf"[`'\"]{{1,2}}\b(?:{'|'.join(INFOS)})\b[`'\"]{{1,2}}"
    for file in Path(DCLS.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for found in re.finditer(rf"{name}(?:(?:,| or| and|, or|, and)\s+{name}){{2,}}", text):
            missing = [n for n in INFOS if not re.search(rf"\b{n}\b", found[0])]
            assert not missing, f"{file}: {found[0]!r} lacks {missing}"


# What does not compile


def compiles(directory: Path) -> bool:
    compiler = shutil.which("c++")
    assert compiler is not None
    command = [compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(
        [*command, f"-I{directory / 'src'}", f"-I{directory / 'include'}"],
        input='#include "interpolation/interpolation.hpp"\n',
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode == 0


def change(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text(encoding="utf-8"), count=1)
    assert count == 1
    file.write_text(text, encoding="utf-8")


@sources
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_an_incomplete_version_does_not_compile(tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        for folder in ("src/interpolation", "src/core", "include"):
            shutil.copytree(ROOT / folder, tmp_path / name / folder)
        return tmp_path / name

    assert compiles(fresh("as it is"))
    listed = fresh("in the list only")
    change(listed / "include/dcls/types.hpp", r"X\(kV1\)", "X(kV1) X(kNew)")
    assert not compiles(listed)
    members = ("kName", "kNormalised", "kHasWidth", "kSmallestWidth", "kMostTaps", "tap", "reach")
    for member in members:
        without = fresh(f"without {member}")
        change(without / "src/interpolation/v1.hpp", rf"\b{member}\b", "other")
        assert not compiles(without), member
    unbounded = fresh("without a width, not bounded")
    change(unbounded / "src/interpolation/v1.hpp", r"kMostTaps = 2", "kMostTaps = 0")
    assert not compiles(unbounded)
