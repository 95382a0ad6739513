"""A hook of mkdocs: the README is a page of the site, and no link leads out of the site.

Pages link to files of the repository, which works where the repository is browsed. On the site,
which has only the pages and the pictures, such a link becomes the file's name. A link to what is
not there stays as it is, so that ``mkdocs build --strict`` fails on it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
README_PAGE = "readme.md"
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")


def for_the_site(markdown: str, folder: Path) -> str:
    """Rewrites the links of one page.

    Args:
        markdown: its text.
        folder: the directory that its relative links start from.

    Returns:
        The text with links to pages and pictures relative to ``docs``, and with the names of all
        other files of the repository in place of links to them.
    """

    def replace(link: re.Match[str]) -> str:
        label, target, anchor = link[1], link[2], link[3] or ""
        path = Path(os.path.normpath(folder / target))
        if "://" in target or not (path.is_relative_to(ROOT) and path.exists()):
            return link[0]
        if path == README:
            return f"[{label}]({README_PAGE}{anchor})"
        if path.is_relative_to(DOCS) and path.suffix in (".md", ".png"):
            return f"[{label}]({path.relative_to(DOCS).as_posix()}{anchor})"
        name = path.relative_to(ROOT).as_posix()
        is_name = f"/{name}".endswith(f"/{label.strip('`')}")
        return f"`{name}`" if is_name else f"{label} (`{name}`)"

    return LINK.sub(replace, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README to the pages."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, README_PAGE, abs_src_path=str(README)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Rewrites the links of a page before they are checked."""
    return for_the_site(markdown, ROOT if page.file.src_uri == README_PAGE else DOCS)
