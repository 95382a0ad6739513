"""The steps of ``scripts/gpu_check.sh``: programs with a time limit, and how they went."""

from __future__ import annotations

import datetime as dt
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

PASSED, FAILED, SKIPPED, NOT_REACHED = "passed", "failed", "skipped", "not reached"
TAIL_LINES = 25
#: Of a failed step, beside its last lines: the first that tell of an error.
ERROR_LINES = 12
_ERROR = re.compile(r"\berror\b|^FAILED|^E  ", re.IGNORECASE)


class CutShortError(Exception):
    """A signal that ends the run."""


@dataclass
class Step:
    """A program to run, and how it went."""

    name: str
    command: list[str]
    reserve: float  #: seconds that earlier steps leave for it
    must_print: str = ""  #: regular expression; without a match in its output it has failed
    must_write: Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    needs_build: bool = True
    optional: bool = False  #: not reaching its end is no failure of the run
    shows_output: bool = False  #: its standard output belongs into the final report
    selected: bool = True  #: whether it is to be run
    status: str = NOT_REACHED
    reason: str = ""
    summary: str = ""  #: the last line that matches must_print
    began: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    errors: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)

    def is_well(self) -> bool:
        """Whether it passed, or need not."""
        return self.status == PASSED or (self.optional and self.status != FAILED)

    def note(self) -> str:
        """What there is to say beside the status."""
        return "; ".join(part for part in (self.reason, self.summary) if part)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "summary": self.summary,
            "began": self.began,
            "seconds": round(self.seconds, 1),
            "limit_seconds": round(self.limit, 1),
            "command": shlex.join(self.command),
            "errors": self.errors,
            "tail": self.tail,
        }

    def recall(self, entry: dict[str, Any]) -> None:
        """Takes over what :meth:`as_json` returned in an earlier run."""
        for name in ("status", "reason", "summary", "began", "seconds", "errors", "tail"):
            setattr(self, name, entry[name])
        self.limit, self.command = entry["limit_seconds"], shlex.split(entry["command"])


def skipped(name: str, reason: str, optional: bool = False) -> Step:
    """A step that cannot be run here."""
    return Step(name, [], 0, status=SKIPPED, reason=reason, optional=optional)


def time_limits(reserves: Sequence[float], index: int, left: float) -> float:
    """Seconds that step ``index`` may take, when ``left`` seconds remain.

    All that is left but for the reserves of the later steps; where that is less than its own
    reserve, the step shares what is left with the later ones in proportion.
    """
    own, later = reserves[index], sum(reserves[index + 1 :])
    if left >= own + later:
        return left - later
    return left * own / (own + later) if own > 0 else 0.0


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a program and what it started.

    All get a few seconds to end by themselves: ninja, for one, has to end its compilers, which are
    in process groups of their own; and pytest, interrupted, still tells of the tests that it ran.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 3
        send = int(number)
        while time.monotonic() < deadline:
            process.poll()  # a zombie would count as alive
            try:
                os.killpg(process.pid, send)
            except ProcessLookupError:
                return
            send = 0  # once; from here on it only asks whether they are still there
            time.sleep(0.05)
    process.wait()


def execute(step: Step, limit: float, logs: Path, env: dict[str, str]) -> None:
    """Runs a step and notes how it went; CutShortError, after that, if a signal comes."""
    step.limit = limit
    step.began = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    begin = time.monotonic()
    out, err = logs / f"{step.name}.out", logs / f"{step.name}.err"
    unfinished = NOT_REACHED if step.optional else FAILED
    step.status, cut_short = FAILED, None
    try:
        if step.must_write is not None:
            step.must_write.unlink(missing_ok=True)  # an old result is none of this run
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env={**env, **step.env},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                step.reason = "" if code == 0 else f"exit status {code}"
            except subprocess.TimeoutExpired:
                step.status, step.reason = unfinished, f"not done after {limit:.0f} s"
            except CutShortError as error:
                cut_short = error
                step.status, step.reason = unfinished, f"cut short: {error}"
            finally:
                end_group(process)
    except OSError as error:
        step.reason = str(error)
    step.seconds = time.monotonic() - begin
    printed, complained = (
        path.read_text(encoding="utf-8", errors="replace").splitlines() for path in (out, err)
    )
    lines = [*complained, *printed]
    step.tail = [line[:300] for line in lines[-TAIL_LINES:]]
    if step.must_print:
        matches = [line.strip() for line in lines if re.search(step.must_print, line)]
        step.summary = matches[-1] if matches else ""
        if not matches and not step.reason:
            step.reason = f"nothing in its output matches {step.must_print!r}"
    if step.must_write is not None and not step.must_write.is_file() and not step.reason:
        step.reason = f"{step.must_write} was not written"
    if not step.reason:
        step.status = PASSED
    else:
        # pip prints what the compiler says, and complains at the end that it failed.
        found = [line[:300] for line in (*printed, *complained) if _ERROR.search(line)]
        step.errors = found[:ERROR_LINES]
    if cut_short is not None:
        raise cut_short
