"""Past finds of the fuzzer, and a few cases of each kind and mode that stay the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from fuzz.bounds import exact
from fuzz.checks import DifferenceError, _compare, check
from fuzz.draw import MODES, draw
from fuzz.hostile import make_attack, run_hostile
from fuzz.problems import make

CORPUS = json.loads(Path(__file__).with_name("corpus.json").read_text())


@pytest.mark.parametrize("case", CORPUS["cases"], ids=lambda case: case["name"])
def test_past_finds(case):
    assert check(case) == "done"


@pytest.mark.parametrize("attack", CORPUS["hostile"], ids=lambda attack: attack["name"])
def test_past_hostile_calls(attack):
    assert make_attack(attack) is None


def test_every_kind_and_mode_is_drawn():
    drawn = Counter((case["kind"], case["mode"]) for case in map(draw, range(2000)))
    assert len(drawn) == 5 * len(MODES)


def test_a_wrong_value_is_found():
    """The bounds are tight: they leave no room for a product that is missing."""
    case = next(c for c in CORPUS["cases"] if c["name"] == "conv grad")
    case = {**case, "dtype": "float32", "batch": 1, "channels": [2, 2], "groups": 1}
    case |= {"input": [20], "kernel": [5], "stride": [1], "padding": [2], "dilation": [1]}
    problem = make(case)
    output = problem.run(**problem.tensors)
    tensors = {name: tensor.double() for name, tensor in problem.tensors.items()}
    eps = torch.finfo(torch.float32).eps
    bound = problem.bounds(exact(torch.ones_like(output)), tensors, eps, 0.0, 0.0, False)
    error = (output.double() - bound["output"].value).abs()
    assert (error <= eps * bound["output"].error).all()
    # The values are sixteenths.
    assert eps * bound["output"].error.max() < 1 / 16


def test_hostile_calls_run_in_a_child():
    outcomes = Counter()
    assert run_hostile(0, 60, outcomes, count=2) == []
    assert outcomes["hostile"] == 2


def test_a_difference_says_where():
    case = {**CORPUS["cases"][0], "mode": "grad"}
    problem = make(case)
    got = problem.run(**problem.tensors)
    want = got.double() + 1
    with pytest.raises(DifferenceError, match=r"\[.*\] is .*, not .*: off by"):
        _compare("output", got, want, torch.full_like(want, 0.5), got.dtype)
