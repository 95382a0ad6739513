"""Which commit of this project the files here are."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def commit(root: Path = ROOT) -> dict[str, Any]:
    """Returns ``commit``, and ``changed``: whether files differ from it; {} outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # Or else an unpacked archive inside somebody's own repository would get its commit.
        git("ls-files", "--error-unmatch", "pyproject.toml")
        # The results of measurements are not what is measured.
        files = ("--", ".", ":!benchmarks/results")
        changed = bool(git("status", "--porcelain", "--untracked-files=no", *files))
        return {"commit": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.CalledProcessError):
        return {}
