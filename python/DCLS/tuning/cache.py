"""Measured choices on disk: a file for each, in a folder of the user.

A file is written whole and then renamed, so that a reader never sees half of one, and two processes
that write at once do not disturb each other: they write the same key, or other files. What cannot
be read counts as missing. What cannot be written is said once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Final

logger: Final = logging.getLogger("DCLS")

#: Of the files. A later one with other fields gets the next number; others are ignored.
FORMAT: Final = 1


def folder() -> Path | None:
    """Returns where the files are: ``DCLS_CACHE_DIR``, else ``dcls`` in the user's cache folder.

    None if there is no home.
    """
    if own := os.environ.get("DCLS_CACHE_DIR"):
        return Path(own) / "tuning"
    home = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(home):  # the XDG standard says to ignore others
        return Path(home) / "dcls" / "tuning"
    try:
        return Path.home() / ".cache" / "dcls" / "tuning"
    except RuntimeError:
        return None


class Cache:
    """The files of one folder."""

    def __init__(self, directory: Path | None) -> None:
        """Creates no folder yet. With None nothing is kept."""
        self.directory = directory
        self._has_failed = False

    def _file(self, key: dict[str, Any]) -> Path | None:
        if self.directory is None:
            return None
        text = json.dumps(key, sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def load(self, key: dict[str, Any]) -> tuple[str, dict[str, float]] | None:
        """Returns the method and the seconds of each candidate; None if there is no such file.

        Args:
            key: all that the choice depends on, as JSON holds it.
        """
        file = self._file(key)
        if file is None:
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["key"] != key:
                return None
            method, seconds = content["method"], dict(content["seconds"])
            if not isinstance(method, str) or method not in seconds:
                return None
            # A candidate that ran out of memory has no seconds.
            return method, {
                name: math.inf if value is None else float(value) for name, value in seconds.items()
            }
        except (OSError, ArithmeticError, ValueError, LookupError, TypeError, RecursionError):
            return None  # missing, broken, or of another version

    def store(self, key: dict[str, Any], method: str, seconds: dict[str, float]) -> bool:
        """Writes a choice; returns whether it could. The first failure is logged."""
        file = self._file(key)
        if file is None:
            return False
        finite = {name: value if math.isfinite(value) else None for name, value in seconds.items()}
        content = {"format": FORMAT, "key": key, "method": method, "seconds": finite}
        try:
            _write(file, json.dumps(content, indent=1, sort_keys=True))
        except OSError as error:
            if not self._has_failed:
                logger.warning(
                    "measured choices are not kept: %s cannot be written: %s",
                    self.directory,
                    error.strerror or error,
                )
            self._has_failed = True
            return False
        return True

    def clear(self) -> int:
        """Deletes the files of this folder; returns how many."""
        if self.directory is None or not self.directory.is_dir():
            return 0
        count = 0
        for file in self.directory.glob("*.json"):
            with contextlib.suppress(OSError):
                file.unlink()
                count += 1
        return count


def _write(file: Path, text: str) -> None:
    """Writes a file at once, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # The name of the process is not enough: machines can share a home.
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
