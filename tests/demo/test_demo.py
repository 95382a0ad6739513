"""The demo: its tasks, its training, its table and its picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from DCLS.demo import picture, train
from DCLS.demo.settings import Settings
from DCLS.demo.tasks import KINDS, TASKS, Data, Recipe, Signals, Split, Task, count_parameters

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
def outcomes() -> list[train.Outcome]:
    return train.compare(Signals(), KINDS, Settings(task="signals", epochs=2, seeds=2))


def test_learned_delays_move_and_stay_in_the_kernel(outcomes: list[train.Outcome]) -> None:
    assert [(one.seed, one.kind) for one in outcomes] == [(s, k) for s in (0, 1) for k in KINDS]
    for one in outcomes:
        before, after = (net.get_submodule("delays").P for net in (one.initial, one.network))
        assert torch.equal(before, after) == (one.kind != "learned")
        assert after.abs().max() <= Signals.max_delay / 2
        assert one.test > 2 / 9


def test_table_has_mean_and_deviation(outcomes: list[train.Outcome]) -> None:
    rows = train.table(Signals(), outcomes).splitlines()[2:]
    for kind, row in zip(KINDS, rows, strict=True):
        values = torch.tensor([100 * one.test for one in outcomes if one.kind == kind]).double()
        assert f"{values.mean():.2f} +- {values.std():.2f} %" in row
    assert train.verdict(Signals(), outcomes).count("%") == 2


def test_picture_is_drawn(outcomes: list[train.Outcome], tmp_path: Path) -> None:
    settings = Settings(task="signals", output=tmp_path / "demo.svg")
    picture.save(Signals(), outcomes, settings)
    assert "Ahead of it in" in picture.draw(Signals(), outcomes)._suptitle.get_text()
    assert settings.output.read_text().startswith("<?xml")


def test_schedule_falls_to_zero_and_a_diverged_training_says_so() -> None:
    assert math.isclose(train.schedule(4, 4, 1), 0, abs_tol=1e-12)
    data = Data(*(split.to(torch.device("cpu"), torch.float32) for split in Signals().load(0)))
    some = Split(data.train.inputs[:40], data.train.labels[:40])
    some.inputs.fill_(math.inf)
    with pytest.raises(train.DivergedError, match="the loss of epoch 1 is nan"):
        train.train(Signals().network("plain", 0), some, Recipe(epochs=1, batch_size=20, lr=1.0), 0)
