"""Which commit of this project the files here are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Environment variable that says it for a copy of the files without git.
VARIABLE = "DCLS_COMMIT"


def commit(root: Path = ROOT) -> dict[str, Any]:
    """Returns ``commit``, and ``changed``: whether files differ from it.

    Outside a checkout ``commit`` is what :data:`VARIABLE` says; {} if it says nothing.
    """

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
        told = os.environ.get(VARIABLE)
        return {"commit": told} if told else {}
