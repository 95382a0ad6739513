"""The readme of the package's metadata: README.md, whose paths lead nowhere on a package index.

A plugin of scikit-build-core, named in pyproject.toml. There, ``source`` has the address of the
repository. As long as it is empty, a link becomes its text with the path, and a picture what its
text says it shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["adapted", "dynamic_metadata"]

#: Code, which stays as it is; or [text](target), with a "!" before it for a picture.
_CODE_OR_LINK = re.compile(
    r"^```.*?^```$|`[^`\n]*`(?!\])|(!?)\[([^\]]+)\]\(([^)\s]+)\)", re.MULTILINE | re.DOTALL
)


def adapted(text: str, source: str) -> str:
    """Returns the text with no link or picture that is relative.

    Args:
        text: Markdown that begins with a title, as README.md at the root of the repository has it.
        source: the address of the repository, ``https://...``; empty for none.
    """

    def replaced(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        if target is None or "://" in target:
            return found[0]
        path, sign, heading = target.partition("#")
        if source:
            place = "raw" if picture else "blob"
            return f"{picture}[{label}]({source}/{place}/HEAD/{path or 'README.md'}{sign}{heading})"
        if picture:
            return f"*Picture `{path}`: {label}*"
        return label if not path or path in label else f"{label} (`{path}`)"

    said = "" if source else "\n*Paths in this text belong to the source distribution.*\n"
    title, _, rest = text.partition("\n")
    return f"{title}\n{said}{_CODE_OR_LINK.sub(replaced, rest)}"


def dynamic_metadata(field: str, settings: Mapping[str, str]) -> dict[str, str]:
    """As scikit-build-core has it.

    Raises:
        ValueError: the field is another one, or there are other settings.
    """
    if field != "readme" or settings.keys() != {"source"}:
        raise ValueError(f"this makes the readme with the setting source, got {field}: {settings}")
    text = adapted(Path("README.md").read_text(encoding="utf-8"), settings["source"])
    return {"content-type": "text/markdown", "text": text}
