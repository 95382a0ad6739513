"""The papers in miniature: the networks, the comparison, and the page of the results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarking import load

pytest.importorskip("sklearn")
pytest.importorskip("tabulate")
pytest.importorskip("tqdm")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("claims", monkeypatch)


def make_page(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    program = load("make_claims", monkeypatch, ROOT / "docs")
    monkeypatch.setattr(sys, "argv", ["make_claims", *map(str, arguments)])
    status: int = program.main()
    return status


@pytest.mark.parametrize("task", ["pixels", "delays", "signals", "digits"])
def test_networks_have_as_many_parameters(claims: ModuleType, task: str) -> None:
    counts = {
        name: claims.count_parameters(claims.make_network(task, name, 0))
        for name in claims.networks(task)
    }
    least, most = min(counts.values()), max(counts.values())
    assert most < 1.02 * least
    for claim in claims.CLAIMS:
        if task in claim.tasks:
            assert counts[claim.better] <= most
            if claim.better == "learned" and claim.worse != "v1":
                assert counts["learned"] <= counts[claim.worse]


def test_positions_of_the_other_networks(claims: ModuleType) -> None:
    def delays(name: str, seed: int) -> torch.Tensor:
        layer = claims.make_network("signals", name, seed).delays
        assert layer.P.requires_grad == (name == "v1")
        found: torch.Tensor = layer.delays().detach()
        return found

    assert torch.equal(delays("random", 1), delays("random", 1).round())
    assert delays("random", 1).unique().tolist() == list(range(13))
    assert not torch.equal(delays("random", 1), delays("random", 2))
    assert not delays("none", 1).any()
    assert delays("v1", 1).std() > 2
    layers = claims.make_network("digits", "v1", 1).depthwise_layers()
    assert {layer.version for layer in layers} == {"v1"}


def test_interval_is_that_of_student(claims: ModuleType) -> None:
    # The table of the t distribution: 4.303 at two degrees of freedom.
    assert claims.interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3
    )


def test_rates_are_chosen_on_validation_examples(
    claims: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each trained network meets the test examples once."""
    rates: dict[int, float] = {}
    asked = []

    def train(network: torch.nn.Module, _: object, recipe: claims.Recipe, seed: int) -> None:
        rates[id(network)] = recipe.lr
        kept.append(network)

    def evaluate(network: torch.nn.Module, examples: claims.Split) -> float:
        count = len(examples.labels)
        asked.append((id(network), count))
        return 1 / (1 + abs(rates[id(network)] - 0.02)) if count == 450 else 0.25

    kept: list[torch.nn.Module] = []  # so that no id is used again
    monkeypatch.setattr(claims, "train", train)
    monkeypatch.setattr(claims, "evaluate", evaluate)
    monkeypatch.setattr(claims, "SEEDS", {"signals": 2})
    monkeypatch.setattr(claims.DCLS, "round_", lambda _: None)
    rows = claims.trainings("signals", argparse.Namespace(quick=False))
    trained = [row for row in rows if row["part"] == "training"]
    names = ["learned", "rounded", "fixed", "v1", "random", "none"]
    assert [(row["seed"], row["network"]) for row in trained] == [
        (seed, name) for seed in (1, 2) for name in names
    ]
    assert {row["rate"] for row in trained} == {0.02}
    assert {row["test"] for row in trained} == {25.0}
    seen = [network for network, count in asked if count == 1800]
    # The learned ones twice: as they are, and rounded.
    assert len(seen) == len(trained) == len(set(seen)) + 2


def test_a_step_of_each_network_is_timed(claims: ModuleType) -> None:
    options = argparse.Namespace(repeats=1, slow_repeats=1, min_seconds=0.005)
    rows = claims.speed("signals", options)
    assert [row["network"] for row in rows] == ["learned", "fixed", "v1", "random", "none"]
    assert rows[-1]["over base"].median == 1
    assert all(row["ms"].median > 0 for row in rows)


def test_the_committed_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_page(monkeypatch, "--check") == 0


def test_the_page_follows_from_the_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = {
        "learned": (90.0, 92.0, 91.0),
        "rounded": (80.0, 82.0, 81.0),
        "fixed": (70.0, 71.0, 72.0),
        "v1": (90.0, 91.0, 93.0),
        "random": (95.0, 96.0, 97.0),
    }
    rows = [
        {"part": "training", "task": "pixels", "network": name, "seed": seed, "rate": 0.01}
        | {"parameters": 7, "validation": 50.0, "test": test}
        for name, values in tests.items()
        for seed, test in enumerate(values, 1)
    ]
    head = {"benchmark": "claims", "device": "cpu", "date": "2031-02-03", "command": "x"}
    head["machine"] = {"cpu": "Imaginary", "simd": "avx9", "threads": 1, "cpus": 4, "torch": "9.9"}
    head["machine"] |= {"dcls": {"version": "1.2.3"}}
    page = tmp_path / "claims.md"
    where = ("--results", tmp_path, "--page", page)
    assert make_page(monkeypatch, *where) == 0
    assert page.read_text().count("*Not measured yet.*") == 4
    (tmp_path / "claims-pixels-cpu.json").write_text(json.dumps({**head, "results": rows}))
    assert make_page(monkeypatch, *where, "--check") == 1
    assert "run python docs/make_claims.py" in capsys.readouterr().err
    assert make_page(monkeypatch, *where) == 0
    text = " ".join(page.read_text().split())
    for part in (
        "the claim holds in 1, is open in 1, and in 1 it is **the other way round**.",
        "(https://arxiv.org/abs/2112.03740). It holds on `pixels`.",
        "(https://arxiv.org/abs/2306.00817). It is open on `pixels`.",
        "(https://arxiv.org/abs/2306.17670). It is **the other way round** on `pixels`.",
        # Differences 20, 21, 19; 0, 1, -2; -5, -4, -6: 4.303 / sqrt(3) is 2.5.
        "| 91.0 | 71.0 | +20.0 | +17.5 to +22.5 | 3 of 3 seeds | holds |",
        "| 91.0 | 91.3 | -0.3 | -4.1 to +3.5 | 1 of 3 seeds | open |",
        "| 91.0 | 96.0 | -5.0 | -7.5 to -2.5 | 0 of 3 seeds | **the other way round** |",
        "| `pixels` | fixed, random | 7 | 0.01 | 50.00 ± 0.00 | 96.00 ± 1.00 | 3 |",
        "on the test examples: -10.0 points on `pixels`.",
        "Imaginary, AVX9, 1 thread of 4 CPUs",
    ):
        assert part in text, part
    assert text.count("*Not measured yet.*") == 1
    speed = {"part": "speed", "task": "pixels", "network": "v1", "base": "plain"}
    speed |= {"ms": [2.5, 2.0, 3.0, 9], "over base": [1.25, 1.0, 1.5, 9]}
    (tmp_path / "claims-speed-cpu.json").write_text(json.dumps({**head, "results": [speed]}))
    assert make_page(monkeypatch, *where) == 0
    text = " ".join(page.read_text().split())
    times = "2.50 [2.00-3.00] | 1.25 [1.00-1.50]"
    assert f"| `pixels` | learned, v1 | {times} | plain convolutions |" in text
    assert "*Not measured yet.*" not in text
