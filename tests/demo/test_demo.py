"""The demo: its tasks, its training, its table and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from DCLS.demo import outcome, picture, train
from DCLS.demo.settings import Settings
from DCLS.demo.tasks import KINDS, TASKS, Data, Kind, Recipe, Signals, Split, Task, count_parameters

SHAPES = {"pixels": (64, 1), "delays": (29, 13), "signals": (64, 2), "digits": (1, 24, 24)}
CLASSES = {"pixels": 10, "delays": 9, "signals": 9, "digits": 10}


@pytest.mark.parametrize("name", TASKS)
def test_kinds_have_as_many_parameters_and_learned_never_the_most(name: str) -> None:
    task = TASKS[name]()
    x = torch.ones(2, *SHAPES[name])
    counts = {}
    for kind in KINDS:
        network = task.network(kind, 0)
        assert network(x).shape == (2, CLASSES[name])
        counts[kind] = count_parameters(network)
        moving = [n for n, p in network.named_parameters() if n.endswith("P") and p.requires_grad]
        assert bool(moving) == (kind == "learned")
    assert counts["fixed"] == counts["plain"]
    assert 0.98 * counts["plain"] < counts["learned"] <= counts["plain"]


@pytest.mark.parametrize("name", ["pixels", "signals", "digits"])
def test_the_test_examples_are_apart_and_the_same_for_all_seeds(name: str) -> None:
    task: Task = TASKS[name]()
    one, two = task.load(0), task.load(1)
    assert torch.equal(one.test.inputs, two.test.inputs)
    assert not torch.equal(one.validation.inputs, two.validation.inputs)
    both = torch.cat([split.inputs for split in one]).flatten(1)
    assert len(torch.unique(both, dim=0)) == len(both), "an example is in two splits"


@pytest.fixture(scope="module")
def outcomes() -> list[outcome.Outcome]:
    return train.compare(Signals(), KINDS, Settings(task="signals", epochs=2, seeds=2))


def test_learned_delays_move_and_stay_in_the_kernel(outcomes: list[outcome.Outcome]) -> None:
    assert [(one.seed, one.kind) for one in outcomes] == [(s, k) for s in (0, 1) for k in KINDS]
    for one in outcomes:
        before, after = (net.get_submodule("delays").P for net in (one.initial, one.network))
        assert torch.equal(before, after) == (one.kind != "learned")
        assert after.abs().max() <= Signals.max_delay / 2
        assert one.test > 2 / 9


def test_table_has_mean_and_deviation(outcomes: list[outcome.Outcome]) -> None:
    rows = outcome.table(Signals(), outcomes).splitlines()[2:]
    for kind, row in zip(KINDS, rows, strict=True):
        values = torch.tensor([100 * one.test for one in outcomes if one.kind == kind]).double()
        assert f"{values.mean():.2f} +- {values.std():.2f} %" in row


@pytest.mark.parametrize(
    ("learned", "end", "wins"),
    [((0.9, 0.7), "won", 1), ((0.6, 0.7), "lost", 0), ((0.7, 0.8), "tied", 1)],
)
def test_verdict_compares_with_the_best_other_kind(
    outcomes: list[outcome.Outcome], learned: tuple[float, float], end: str, wins: int
) -> None:
    tests = {"learned": learned, "fixed": (0.1, 0.2), "plain": (0.8, 0.7)}
    found = [replace(one, test=tests[one.kind][one.seed]) for one in outcomes]
    first, second = outcome.verdict(Signals(), found).splitlines()
    mean = sum(learned) / 2
    assert first == f"Learning {Signals.learned} {end}: {mean:.1%} right on {Signals.title},"
    label = Signals().label("plain")
    assert second == f"against 75.0% with {label} (ahead in {wins} of 2 seeds)"


@pytest.mark.parametrize(
    ("name", "kinds", "suffix", "start"),
    [
        ("pixels", KINDS, ".png", b"\x89PNG\r\n\x1a\n"),
        ("pixels", KINDS[:1], ".png", b"\x89PNG\r\n\x1a\n"),
        ("delays", KINDS, ".pdf", b"%PDF"),
        ("signals", KINDS, ".svg", b"<?xml"),
        ("digits", KINDS, ".png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_picture_says_who_won_on_an_axis_that_ends_at_100(
    name: str,
    kinds: Sequence[Kind],
    suffix: str,
    start: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = TASKS[name]()
    networks = {kind: (task.network(kind, 0), task.network(kind, 1)) for kind in kinds}
    found = [
        outcome.Outcome(kind, seed, *networks[kind], 0.1, 0.9, 1 - 0.02 * (place + seed), 1.0)
        for seed in (0, 1)
        for place, kind in enumerate(kinds)
    ]
    figure = picture.draw(task, found)
    monkeypatch.setattr(picture, "draw", lambda *_: figure)
    settings = Settings(task=name, output=tmp_path / f"picture{suffix}")
    picture.save(task, found, settings)
    assert settings.output.read_bytes().startswith(start)

    assert figure.get_suptitle() == outcome.verdict(task, found)
    bars, *others = figure.axes
    assert bars.get_xlim() == (85 if len(kinds) == 3 else 95, 100)
    assert max(bars.get_xticks()) == 100
    assert bars.patches[-1].get_width() == pytest.approx(99)
    assert [text.get_text() for text in bars.texts][-2:] == [task.label("learned"), "99.0 %"]
    figure.draw_without_rendering()  # lays out for figure.dpi again, which other formats have not
    for axes in (bars, *others):
        assert axes.has_data()
        texts = (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)
        for text in (text for text in texts if text.get_text()):
            box, whole = text.get_window_extent(), figure.bbox.padded(1)
            assert whole.contains(box.x0, box.y0), text.get_text()
            assert whole.contains(box.x1, box.y1), text.get_text()


@pytest.mark.parametrize(("steps", "warm_up"), [(430, 86), (4, 1), (1, 0)])
def test_schedule_warms_up_and_then_falls_to_zero(steps: int, warm_up: int) -> None:
    factors = [train.schedule(step, steps, warm_up) for step in range(steps + 1)]
    assert all(0 < factor <= 1 for factor in factors[:-1])
    assert factors[: warm_up + 1] == sorted(factors[: warm_up + 1])
    assert factors[warm_up] == 1
    assert factors[warm_up:] == sorted(factors[warm_up:], reverse=True)
    assert math.isclose(factors[steps], 0, abs_tol=1e-12)


def test_a_diverged_training_says_so() -> None:
    data = Data(*(split.to(torch.device("cpu"), torch.float32) for split in Signals().load(0)))
    some = Split(data.train.inputs[:40], data.train.labels[:40])
    some.inputs.fill_(math.inf)
    with pytest.raises(train.DivergedError, match="the loss of epoch 1 is nan"):
        train.train(Signals().network("plain", 0), some, Recipe(epochs=1, batch_size=20, lr=1.0), 0)
