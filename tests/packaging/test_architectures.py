"""The list of GPU architectures, and all that reads it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LIST = ROOT / "cmake" / "cuda_architectures.txt"

pytestmark = pytest.mark.skipif(not LIST.is_file(), reason="takes a source tree")


class Architecture(NamedTuple):
    capability: str
    first: str
    end: str
    ptx: str

    @property
    def version(self) -> str:
        """As NVIDIA writes it: 7.5."""
        return f"{self.capability[:-1]}.{self.capability[-1]}"


def listed() -> list[Architecture]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [Architecture(*line.split()) for line in lines if not line.startswith("#")]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake")
@pytest.mark.parametrize("toolkit", ["12.0.140", "12.6.85", "12.8", "12.9.1", "13.0.48"])
def test_what_a_toolkit_builds_for(toolkit: str, tmp_path: Path) -> None:
    script = tmp_path / "ask.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/DclsArchitectures.cmake")\n'
        f'dcls_cuda_architectures(found {toolkit})\nmessage("${{found}}")\n'
    )
    done = subprocess.run(
        ["cmake", "-P", str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    found = done.stderr.strip().split(";")
    known = [a for a in listed() if numbers(a.first) <= numbers(toolkit)]
    known = [a for a in known if a.end == "-" or numbers(toolkit) < numbers(a.end)]
    ptx = [a.capability for a in known if a.ptx == "PTX"]
    assert found == [f"{a.capability}-real" for a in known] + [f"{ptx[-1]}-virtual"]
    assert ("70-real" in found) == toolkit.startswith("12.")
    assert "90-real" in found


def test_the_check_of_a_wheel_asks_for_what_every_toolkit_builds() -> None:
    path = ROOT / ".github" / "scripts" / "check_wheel.py"
    spec = importlib.util.spec_from_file_location("check_wheel", path)
    assert spec is not None
    assert spec.loader is not None
    check_wheel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_wheel)
    machine_code, ptx = check_wheel.required_architectures()
    assert machine_code == {a.capability for a in listed() if a.end == "-"}
    assert {"80", "90", "120"} <= machine_code
    assert ptx == max(int(a.capability) for a in listed() if a.ptx == "PTX")


@pytest.mark.parametrize(
    ("page", "row"),
    [
        ("README.md", r"^\| NVIDIA GPU \|(.*)\|"),
        ("docs/install.md", r"^\| GPU, compute .*?\|(.*)\|"),
    ],
)
def test_the_pages_name_them_all(page: str, row: str) -> None:
    match = re.search(row, (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    named = {number.replace(".x", ".0") for number in re.findall(r"\d+\.[\dx]\b", match[1])}
    toolkits = {version for a in listed() for version in (a.first, a.end)}
    assert {a.version for a in listed()} <= named <= {a.version for a in listed()} | toolkits
