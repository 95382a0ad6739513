"""``dcls check``: that it finds what is wrong, and names it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from DCLS import _C, VERSIONS, check, cli, info
from DCLS._native import dense
from DCLS.check import steps, values
from DCLS.tuning import measure
from DCLS.tuning.decide import Decision, Trial

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What ``info.collect`` finds. It takes seconds: another process imports torch."""
    return info.collect()


@pytest.fixture(autouse=True)
def _quick(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One size, two versions, no time is taken."""
    monkeypatch.setattr(info, "collect", lambda: facts)
    monkeypatch.setattr(values, "_SIZES", ((4, 5),))
    monkeypatch.setattr(values, "VERSIONS", ("v1", "gauss"))
    decision = Decision("direct", {"conv": Trial(2e-3), "direct": Trial(1e-3)})
    monkeypatch.setattr(measure, "measure", lambda *_: decision)


def with_changed(
    name: str, change: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
) -> Any:
    return SimpleNamespace(
        **{**vars(values.OPERATORS), name: change(getattr(values.OPERATORS, name))}
    )


def wrong_names(checked: dict[str, Any]) -> set[str]:
    return {result["name"] for result in checked["results"] if result["good"] is False}


@pytest.fixture(scope="module")
def whole() -> Iterator[dict[str, Any]]:
    """Of all sizes and versions, as the command runs it; but for the times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure", lambda *_: Decision(None, {}))
        yield check.run(CPU, seconds=600)


def test_all_is_well_here(whole: dict[str, Any]) -> None:
    """With room: a third of what is allowed. Every operator, version and dtype takes part."""
    assert whole["verdict"] == "pass"
    results = [check.Result(**result) for result in whole["results"]]
    of_values = [result for result in results if result.part == "values"]
    allowed = {str(d).removeprefix("torch."): limit for d, limit in values.TOLERANCES.items()}
    for result in of_values:
        assert result.error is not None
        assert result.error < allowed[result.dtype] / 2, result
    assert {result.name for result in of_values} == vars(values.OPERATORS).keys()
    for name in vars(values.OPERATORS).keys() - {"direct_conv"}:
        seen = {(r.what.split()[0], r.dtype) for r in of_values if r.name == name}
        assert seen == {(version, dtype) for version in VERSIONS for dtype in allowed}
    assert {result.part for result in results} == {"values", "determinism", "time"}
    assert allowed.keys() == {str(dtype).removeprefix("torch.") for dtype in dense.DTYPES}


def test_float32_may_be_rounded_where_torch_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed in (True, False):
        monkeypatch.setattr(values, "allows_tf32", lambda _, allowed=allowed: allowed)
        for case in values.cases():
            rounds = allowed and case.dtype == torch.float32
            rounds = rounds and case.operator in ("direct_conv", "layer")
            limit = values.TF32_TOLERANCE if rounds else values.TOLERANCES[case.dtype]
            assert case.allowed(CPU) == limit


def test_results_are_json(whole: dict[str, Any]) -> None:
    again = json.loads(json.dumps(whole, allow_nan=False))
    assert again["info"]["native"] == _C.build_info()
    assert check.render(again) == check.render(whole)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, "gradient") for name in vars(values.OPERATORS)),
        *(("construct_kernel", fault) for fault in ("value", "nan", "error")),
    ],
)
def test_a_wrong_operator_is_found(name: str, fault: str) -> None:
    def change(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrong(*args: Any, **kwargs: Any) -> Tensor:
            result = right(*args, **kwargs)
            if fault == "error":
                raise RuntimeError("no kernel image")
            if result.dtype == torch.bool:  # a support: one cell is forgotten
                return result & (torch.arange(result.shape[-1]) != result.shape[-1] // 2)
            if fault == "value":
                return result * 1.05
            if fault == "nan":
                return result + torch.where(result == result.max(), torch.nan, 0)
            return 2 * result - result.detach()

        return wrong

    checked = check.run(CPU, with_changed(name, change))
    assert checked["verdict"] == "fail"
    assert wrong_names(checked) - {"construct_support"} == {name} - {"construct_support"}
    assert name in wrong_names(checked)
    text = check.render(checked)
    assert "WRONG" in text
    assert f"\nwrong: {name} v1 2-D float32: " in text or name == "direct_conv"
    assert text.splitlines()[-1].startswith("FAIL: ")
    json.dumps(checked, allow_nan=False)


def test_one_wrong_dtype_is_found() -> None:
    def change(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrong(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return right(input, *args, **kwargs) * (1.05 if input.dtype == torch.float16 else 1)

        return wrong

    checked = check.run(CPU, with_changed("layer", change))
    wrong = [result for result in checked["results"] if result["good"] is False]
    assert {(result["name"], result["dtype"]) for result in wrong} == {("layer", "float16")}


def test_a_step_that_does_not_repeat_itself_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = steps._step
    counts = iter(range(1000))

    def drifting(*args: Any) -> list[Tensor]:
        *results, last = right(*args)
        return [*results, last * (1 + next(counts) / 8)]

    monkeypatch.setattr(steps, "_step", drifting)
    checked = check.run(CPU)
    wrong = [result for result in checked["results"] if result["good"] is False]
    assert [result["part"] for result in wrong] == ["determinism"] * len(dense.DTYPES)
    assert wrong[0]["found"] == "4 steps, other bits"


def test_ways_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = "the results of direct and conv differ: output by 1.0e+00"
    trials = {"conv": Trial(1e-3), "direct": Trial(float("inf"), "its results differ: all")}
    monkeypatch.setattr(measure, "measure", lambda *_: Decision("conv", trials, complaint))
    checked = check.run(CPU)
    wrong = [result for result in checked["results"] if result["good"] is False]
    assert {result["part"] for result in wrong} == {"time"}
    assert wrong[0]["found"] == "conv 1 ms, direct its results differ: all"


def test_times_are_shown_and_not_judged() -> None:
    checked = check.run(CPU)
    times = [result for result in checked["results"] if result["part"] == "time"]
    assert len(times) >= 8
    assert {result["good"] for result in times} == {None}
    assert {result["found"] for result in times} == {"conv 2 ms, direct 1 ms"}
    assert checked["verdict"] == "pass"


def test_no_case_starts_when_the_time_is_over() -> None:
    clock = iter(range(100_000))
    checked = check.run(CPU, seconds=10, now=lambda: float(next(clock)))
    assert checked["verdict"] == "incomplete"
    assert len(checked["results"]) == 10
    assert checked["left out"] > 20
    last = check.render(checked).splitlines()[-1]
    assert last.startswith("INCOMPLETE: 10 checks passed on cpu, and ")


def test_settings_of_torch_stay() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    check.run(CPU)
    assert torch.get_num_threads() == threads
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_graphs_are_for_gpus() -> None:
    assert list(steps.graphs(CPU)) == []
    assert len(list(steps.graphs(torch.device("cuda", 0)))) == 2


# The command


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_command(on_the_cpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "check.json"
    assert cli.main(["check", "--output", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0].split() == ["part", "name", "what", "dtype", "found"]
    assert out.splitlines()[-1].startswith("PASS: ")
    checked = json.loads(file.read_text())
    assert f"{check.render(checked)}\n" == out


def test_the_command_fails_with_the_check(
    on_the_cpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(values.Case, "error", lambda _self, _device: 1.0)
    assert cli.main(["check"]) == 1
    assert "FAIL: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "argument --device: torch finds no CUDA device"),
        (["--output", "/no/such/folder/x.json"], "argument --output: there is no folder /no/such"),
    ],
)
def test_wrong_arguments(
    on_the_cpu: None,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert cli.main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"dcls check: error: {message}")
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_written(
    on_the_cpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", "--output", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_gpu_that_dcls_cannot_use_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if _C.cuda_status()["available"]:
        pytest.skip("DCLS can use the GPU here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert cli.main(["check"]) == 1
    assert "DCLS cannot use the GPU: " in capsys.readouterr().err
    assert cli.main(["check", "--device", "cpu"]) == 0


@pytest.mark.gpu
def test_all_is_well_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    checked = check.run(torch.device("cuda", 0))
    assert checked["verdict"] == "pass", check.render(checked)
