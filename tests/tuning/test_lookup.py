"""What a forward pass on a GPU does: when it measures, what it keeps, and what its key has."""

from __future__ import annotations

import json
import logging
import math
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tuning_problem import FAST_CHOICE, GEOMETRY, MACHINE, PROBLEM, Bench, find, make_bench

from DCLS._precision import allows_tf32, may_round_float32
from DCLS.tuning import facts, forget, lookup, set_tuning, state
from DCLS.tuning.decide import Decision, Trial
from DCLS.tuning.problem import Geometry, as_json, bucket


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return make_bench(monkeypatch)


def test_it_measures_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="DCLS"):
        choice, why_not = find()
    assert choice is not None
    assert choice == ("direct", "direct 1 ms, conv 4 ms on NVIDIA H200", "measured here")
    assert why_not == ""
    assert find()[0] is choice
    assert bench.measured == [PROBLEM]
    (record,) = caplog.records
    assert record.getMessage() == f"measured here: direct, {choice.reason}"


def test_the_next_process_reads_it(bench: Bench, cache_folder: Path) -> None:
    find()
    forget()
    choice, _ = find()
    assert choice == ("direct", "direct 1 ms, conv 4 ms on NVIDIA H200", "cache")
    assert len(bench.measured) == 1
    (file,) = cache_folder.iterdir()
    key = json.loads(file.read_text())["key"]
    assert key.items() >= MACHINE.items()
    assert "device_index" not in key  # the same model in another slot
    forget(files=True)
    assert list(cache_folder.iterdir()) == []
    find()
    assert len(bench.measured) == 2


@pytest.mark.parametrize("field", [*Geometry._fields, "batch", "spatial", "flags", *MACHINE])
def test_every_part_of_the_key_counts(bench: Bench, field: str) -> None:
    find()
    forget()
    problem = PROBLEM
    if field in MACHINE:
        bench.machine = {**MACHINE, field: "another"}
    elif field in Geometry._fields:
        value = {
            "device_index": 1,
            "device_type": "cpu",
            "dtype": torch.bfloat16,
            "input_dtype": torch.bfloat16,
            "weight_dtype": torch.float16,
            "sigma_min": 1.0,
            "version": "v0",
        }.get(field)
        old = getattr(GEOMETRY, field)
        if value is None:
            value = not old if isinstance(old, bool) else old * 2 or (3,)
        problem = PROBLEM._replace(geometry=GEOMETRY._replace(**{field: value}))
    else:
        value = {"batch": 64, "spatial": (56, 57), "flags": (False, True, True, False, "tf32")}
        problem = PROBLEM._replace(**{field: value[field]})
    lookup.resolve(problem, 100, None)
    # Another GPU of the same kind is served by the same file.
    assert len(bench.measured) == (1 if field == "device_index" else 2)


@pytest.mark.parametrize("number", range(5))
def test_flags_of_torch_are_read(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = [
        ("_get_deterministic_algorithms", True),
        ("_get_cudnn_enabled", False),
        ("_get_cudnn_benchmark", True),
        ("_get_cudnn_deterministic", True),
        ("_get_fp32_precision_getter", "other"),
    ][number]
    if not hasattr(torch._C, name):
        pytest.skip("this torch has one way to set the precision")
    before = facts.flags("cuda")
    monkeypatch.setattr(torch._C, name, lambda *_: value)
    after = facts.flags("cuda")
    assert [i for i in range(5) if before[i] != after[i]] == [number]


def test_flags_of_a_cpu_have_its_threads() -> None:
    before, threads = facts.flags("cpu"), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    after = facts.flags("cpu")
    torch.set_num_threads(threads)
    assert before != after
    assert before == facts.flags("cpu")


def test_tf32_is_seen_however_it_is_set() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = True
        assert allows_tf32(torch.device("cuda"))
        assert not allows_tf32(torch.device("cpu"))
        assert may_round_float32("cuda")
        torch.backends.cudnn.allow_tf32 = False
        assert not allows_tf32(torch.device("cuda"))
        assert not may_round_float32("cuda")


def test_batches_and_cells_have_buckets() -> None:
    assert [bucket(n) for n in (0, 1, 2, 3, 4, 5, 127, 128, 129)] == [
        0, 1, 2, 4, 4, 8, 128, 128, 256,
    ]  # fmt: skip
    steps = [bucket(n, 2) for n in range(1, 2000)]
    assert steps == sorted(steps)
    assert all(n <= step <= 1.42 * n + 1 for n, step in enumerate(steps, 1))
    assert len(set(steps)) < 25


def test_a_problem_is_json() -> None:
    assert json.loads(json.dumps(as_json(PROBLEM))) == as_json(PROBLEM)


def test_off_measures_nothing_and_forgets(bench: Bench) -> None:
    find()
    set_tuning("off")
    assert find() == (None, "DCLS_TUNING is off")
    assert len(bench.measured) == 1
    set_tuning("on")
    assert find()[0] is not None


def test_memory_writes_and_reads_no_files(bench: Bench, cache_folder: Path) -> None:
    set_tuning("memory")
    find()
    assert not cache_folder.exists()
    set_tuning("on")
    forget()
    find()
    set_tuning("memory")
    forget()
    choice, _ = find()
    assert choice is not None
    assert choice.source == "measured here"
    assert len(bench.measured) == 3


@pytest.mark.parametrize("value", ["1", "OFF", "yes"])
def test_a_wrong_setting_is_said(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(state, "_mode", None)
    monkeypatch.setenv("DCLS_TUNING", value)
    with pytest.raises(ValueError, match="environment variable DCLS_TUNING must be one of on, mem"):
        find()
    with pytest.raises(ValueError, match="mode must be one of on, memory, off"):
        set_tuning(value)


@pytest.mark.parametrize("value", ["on", "memory", "off", None, ""])
def test_the_environment_sets_the_mode(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.setattr(state, "_mode", None)
    monkeypatch.delenv("DCLS_TUNING", raising=False)
    if value is not None:
        monkeypatch.setenv("DCLS_TUNING", value)
    assert state.get_mode() == (value or "on")


def test_results_that_differ_are_said_once_and_not_kept(
    bench: Bench, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    complaint = "the results of direct and conv differ: output by 1.0e+00"
    bench.decision = Decision("conv", {"conv": Trial(1.0)}, complaint)
    with pytest.warns(RuntimeWarning, match="Please report this message") as warned:
        choice, _ = find()
    assert choice == ("conv", complaint, "measured here")
    assert len(warned) == 1
    text = str(warned[0].message)
    for part in (complaint, "dcls check --output", "NVIDIA H200", "kernel_count", "2.9"):
        assert part in text
    find(PROBLEM._replace(batch=1))  # no second warning: it would be an error here
    assert "Please report" in caplog.text
    assert not cache_folder.exists()


@pytest.mark.parametrize(
    "decision",
    [
        Decision(None, {}),
        Decision(None, {"conv": Trial(math.inf, "no memory")}),
        RuntimeError("CUDA error"),
    ],
)
def test_what_cannot_be_measured_is_not_tried_again(
    bench: Bench, decision: Any, cache_folder: Path
) -> None:
    bench.decision = decision
    for _ in range(3):
        choice, why_not = find()
        assert choice is None
        assert why_not
    assert len(bench.measured) == 1
    assert not cache_folder.exists()


def test_a_file_with_another_method_is_measured_anew(bench: Bench, cache_folder: Path) -> None:
    find()
    (file,) = cache_folder.iterdir()
    text = file.read_text()
    file.write_text(text.replace('"direct"', '"fast"'))
    forget()
    choice, _ = find()
    assert choice is not None
    assert choice.source == "measured here"
    assert file.read_text() == text


def test_ever_new_sizes_are_measured_for_so_many(bench: Bench) -> None:
    limit = lookup.SIZES_OF_A_LAYER
    for length in range(limit + 5):
        choice, why_not = find(PROBLEM._replace(spatial=(56, length)))
        assert choice is not None
        assert bool(why_not) == (length >= limit)
    assert len(bench.measured) == limit
    other = PROBLEM._replace(geometry=GEOMETRY._replace(bias=False))
    assert find(other) == (FAST_CHOICE, "")


def test_a_process_measures_so_often(bench: Bench) -> None:
    for channels in range(lookup.MEASUREMENTS + 5):
        find(PROBLEM._replace(geometry=GEOMETRY._replace(in_channels=channels)))
    assert len(bench.measured) == lookup.MEASUREMENTS
    # Asked for, it does.
    lookup.resolve(PROBLEM._replace(batch=2), 2, None)
    assert len(bench.measured) == lookup.MEASUREMENTS + 1


def test_threads_measure_one_at_a_time(bench: Bench) -> None:
    threads = [threading.Thread(target=find) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bench.measured) == 1
