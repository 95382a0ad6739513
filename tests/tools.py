"""The tools of the test extra, as commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Runs a command, which must succeed, and returns what it wrote."""
    # The tools of the test extra lie beside this Python, whether or not its venv is activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout
