"""What README.md says is so: its code prints what it says, its commands and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from packages import import_all_or_skip, without_their_warnings

from DCLS import cli

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@without_their_warnings
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_code_runs_and_prints_what_it_says(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks("python")[number]
    import_all_or_skip(code)
    expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert len(expected) == code.count("print(")
    exec(compile(code, f"README.md, block {number}", "exec"), {})
    assert capsys.readouterr().out.splitlines() == expected


def test_there_is_code_for_each_dimension() -> None:
    code = "\n".join(blocks("python"))
    for name in ("Dcls1d(", "Dcls2d(", "Dcls3d(", "construct_kernel("):
        assert name in code


def test_the_two_commands_stand_alone() -> None:
    assert blocks("sh") == [
        'pip install ".[demo]" && dcls demo\n',
        'pip install ".[test]" && pytest -n auto\n',
    ]


def test_every_dcls_command_that_is_named_exists() -> None:
    commands = re.findall(r"`(?:torchrun --nproc_per_node=2 -m DCLS|dcls) ([^`]*)`", TEXT)
    assert len(commands) >= 3
    parser, _ = cli._make_parser()
    for command in commands:
        arguments = [word for word in shlex.split(command) if word != "--help"]
        assert parser.parse_args(arguments).command in ("demo", "info", "check")


def test_the_front_page_of_the_site_names_all_pages() -> None:
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^)#:]+)\)", page))
    assert all((ROOT / "docs" / link).is_file() for link in links), links
    assert {p.name for p in (ROOT / "docs").glob("*.md")} - {"index.md"} <= links


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    files = [link for link in links if "://" not in link]
    assert len(files) >= 3
    for link in files:
        assert (ROOT / link).is_file(), link
