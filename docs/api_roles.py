"""A Griffe extension: roles such as ``:func:`fold``` in docstrings become links on the API page.

mkdocstrings takes docstrings as Markdown, which has no roles. What is not on the page stays text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|data|func|meth|mod):`([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        def link(role: re.Match[str]) -> str:
            name = role[1]
            try:
                target = obj.resolve(name)
            except griffe.NameResolutionError:
                target = name
            return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'

        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(link, obj.docstring.value)
