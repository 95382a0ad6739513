"""bench_threads: what each process is given, and what is made of its times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarking import load, run


def test_each_setting_has_a_process_and_busy_ones_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench, path = load("bench_threads", monkeypatch), tmp_path / "threads.json"
    call = next(iter(bench.CALLS))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    busy: list[str] = []
    runs: list[tuple[str | None, str | None, int]] = []

    def start(command: list[str]) -> Any:
        assert command[:2] == [sys.executable, "-c"]
        compile(command[2], "busy", "exec")
        busy.append(command[2])
        return SimpleNamespace(kill=busy.pop, wait=lambda: 0)

    def child(command: list[str], env: dict[str, str], **options: Any) -> Any:
        assert command[1:] == [bench.__file__, "--here", "--seconds", "0.5", "--calls", call]
        runs.append((env.get("OMP_WAIT_POLICY"), env.get("GOMP_SPINCOUNT"), len(busy)))
        return SimpleNamespace(stdout=json.dumps({call: [4.0, 3.0 if not busy else 40.0]}))

    monkeypatch.setattr(bench.harness, "machine_facts", lambda _: {})  # asks a process, too
    monkeypatch.setattr(bench.subprocess, "Popen", start)
    monkeypatch.setattr(bench.subprocess, "run", child)
    arguments = ("--calls", call, "--seconds", "0.5", "--busy", "3", "--json", str(path))
    assert run(bench, monkeypatch, *arguments) == 0
    of_settings = [(None, None), ("PASSIVE", None), (None, "1000")]
    assert runs == [
        (policy or "ACTIVE", spins, count) for count in (0, 3) for policy, spins in of_settings
    ]
    assert not busy
    rows = json.loads(path.read_text())["results"]
    assert [row["environment"] for row in rows] == 2 * list(bench.ENVIRONMENTS)
    assert [row["over 1"] for row in rows] == 3 * [0.75] + 3 * [10.0]


def test_calls_are_timed_on_one_thread_and_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, threads = load("bench_threads", monkeypatch), torch.get_num_threads()
    seen: list[int] = []
    monkeypatch.setitem(bench.CALLS, "call", lambda: lambda: seen.append(torch.get_num_threads()))
    try:
        (times,) = bench.measure_here(["call"], 0.0).values()
    finally:
        torch.set_num_threads(threads)
    assert seen == [1, 1, 1, 2, 2, 2]  # the first of each to warm up
    assert all(time > 0 for time in times)


@pytest.mark.parametrize("name", ["layer 8x768x7x7", "im2col 4x16x512", "delays 128x256"])
def test_calls_can_be_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("bench_threads", monkeypatch).CALLS[name]()() is not None


def test_a_process_that_fails_ends_the_busy_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, ended = load("bench_threads", monkeypatch), []

    def child(*arguments: Any, **options: Any) -> Any:
        raise subprocess.CalledProcessError(1, "child")

    monkeypatch.setattr(
        bench.subprocess,
        "Popen",
        lambda _: SimpleNamespace(kill=lambda: ended.append(1), wait=lambda: 0),
    )
    monkeypatch.setattr(bench.subprocess, "run", child)
    options = SimpleNamespace(seconds=1.0, calls=["call"])
    with pytest.raises(subprocess.CalledProcessError):
        bench.measure("default", 2, options)
    assert ended == [1, 1]
