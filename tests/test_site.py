"""The pages of the site lead to pages and pictures of the site, and to nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
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
