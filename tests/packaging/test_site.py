"""The site: its links lead to pages of it, its code runs, and the API page names all there is."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packages import import_all_or_skip, without_their_warnings

import DCLS
from DCLS import functional, reference
from DCLS.im2col import modules as im2col_modules

ROOT = Path(__file__).parents[2]
HOOK = ROOT / "docs" / "site_links.py"

pytestmark = pytest.mark.skipif(not HOOK.is_file(), reason="takes a source tree")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_links", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("folder", "link", "expected"),
    [
        ("docs", "[C++](cpp.md#errors)", "[C++](cpp.md#errors)"),
        ("docs", "[README](../README.md)", "[README](readme.md)"),
        ("docs", "[`examples/x`](../examples/x)", "[`examples/x`](../examples/x)"),
        ("docs", "[`cmake_project`](../examples/cmake_project)", "`examples/cmake_project`"),
        ("docs", "[draw_axes.py](draw_axes.py)", "`docs/draw_axes.py`"),
        ("docs", "[no.md](no.md), [no](../no.py)", "[no.md](no.md), [no](../no.py)"),
        ("docs", "[there](https://example.org/a.md)", "[there](https://example.org/a.md)"),
        ("", "![All](docs/images/axes.png)", "![All](images/axes.png)"),
        ("", "[a](docs/cpp.md), [MIT](LICENSE)", "[a](cpp.md), MIT (`LICENSE`)"),
    ],
)
def test_where_links_lead(folder: str, link: str, expected: str) -> None:
    assert load().for_the_site(link, ROOT / folder) == expected


def test_every_link_of_the_site_leads_to_a_file_of_it() -> None:
    hook = load()
    pages = sorted((ROOT / "docs").glob("*.md"))
    assert len(pages) > 5
    links = 0
    for page in (hook.README, *pages):
        text = hook.for_the_site(page.read_text(encoding="utf-8"), page.parent)
        for _, target, _ in hook.LINK.findall(text):
            if "://" not in target and target != hook.README_PAGE:
                links += 1
                assert (ROOT / "docs" / target).suffix in (".md", ".png"), (page.name, target)
                assert (ROOT / "docs" / target).is_file(), (page.name, target)
    assert links > 10


#: A block of code, and what it prints if that comes as text.
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def code_of_the_pages() -> Iterator[Any]:
    """Yields each block of code; those of the tutorial together, since they go on from the last."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
        parts = [blocks] if page.stem == "tutorial" else [[block] for block in blocks]
        for number, part in enumerate(parts, 1):
            yield pytest.param(part, id=f"{page.stem}-{number}")


@without_their_warnings
@pytest.mark.parametrize("blocks", list(code_of_the_pages()))
def test_code_runs_and_prints_what_it_says(
    blocks: list[tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    # A group of one process, as torchrun would make it; port 0 is any that is free.
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    names: dict[str, object] = {"__name__": "__main__"}
    for code, printed in blocks:
        import_all_or_skip(code)
        capsys.readouterr()
        comments = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert printed or len(comments) == code.count("print(")
        exec(compile(code, "a page", "exec"), names)
        assert capsys.readouterr().out.splitlines() == (printed.splitlines() or comments)


def test_the_api_page_names_all_there_is() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    for block in re.findall(r"^::: (\S+)\n    options:((?:\n      .*)*)", text, re.MULTILINE):
        members = re.search(r"members: \[(.*)\]", block[1])
        named |= {f"{block[0]}.{name}" for name in (members[1].split(", ") if members else ())}
    for module in (
        functional,
        reference,
        im2col_modules,
        DCLS.cmake,
        DCLS.losses,
        DCLS.plot,
        DCLS.delays,
    ):
        assert {f"{module.__name__}.{name}" for name in module.__all__} <= named
    layers = {name for name in DCLS.__all__ if isinstance(getattr(DCLS, name), type)}
    public = layers - {"_DclsNd", "_DclsN_Md"}
    public |= {name for name in DCLS.__all__ if inspect.isfunction(getattr(DCLS, name))}
    assert {f"DCLS.{name}" for name in public - {"construct_kernel"}} <= named
