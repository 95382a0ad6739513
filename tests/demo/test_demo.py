"""The demo: its network, its training on one process and on two, its table and its picture."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from matplotlib import image

from DCLS._spec import VERSIONS
from DCLS.construct.modules import Dcls2d
from DCLS.demo import model, picture, train
from DCLS.demo.settings import Settings, numbers_per_element

CPU = torch.device("cpu")


def some_digits(count: int, held_out: int = 40, dtype: torch.dtype = torch.float32) -> train.Digits:
    digits = train.load(CPU, dtype)
    return train.Digits(
        digits.train_images[:count],
        digits.train_labels[:count],
        digits.test_images[:held_out],
        digits.test_labels[:held_out],
    )


@pytest.fixture(scope="module")
def outcomes() -> list[model.Outcome]:
    """Both networks after a short training on few digits."""
    settings = Settings(epochs=4, batch_size=4, version="gauss", quiet=True)
    return train.compare(some_digits(160, held_out=100), settings)


# The images


def test_digits_are_split_in_the_proportions_of_the_classes_and_normalised() -> None:
    digits = train.load(CPU, torch.float64)
    assert digits.train_images.shape == (1347, 1, 24, 24)
    assert digits.test_images.shape == (450, 1, 24, 24)
    assert digits.train_images.dtype == torch.float64
    assert abs(digits.train_images.mean()) < 1e-9
    assert abs(digits.train_images.var() - 1) < 1e-9
    assert torch.bincount(digits.test_labels, minlength=10).min() >= 43
    both = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 1797, "a digit is on both sides of the split"


# The networks


@pytest.mark.parametrize(
    ("version", "size", "count"),
    [
        *((version, 17, None) for version in VERSIONS),
        ("gauss", 3, None),
        ("v1", 3, None),
        ("gauss", 23, None),
        ("gauss", 17, 1),
        ("gauss", 17, 10),
        ("gauss", 17, 57),
        ("v0", 17, 96),
    ],
)
def test_plain_network_has_at_least_as_many_parameters(
    version: str, size: int, count: int | None
) -> None:
    settings = Settings(version=version, kernel_size=size, kernel_count=count)
    ours, plain = model.dcls_network(settings), model.plain_network(settings)
    lead = model.count_parameters(plain) - model.count_parameters(ours)
    assert lead >= 0
    per_channel = settings.plain_kernel_size**2 - settings.elements * numbers_per_element(version)
    assert lead == model.DEPTH * model.CHANNELS * per_channel


def test_default_networks_are_nearly_of_one_size() -> None:
    for version, elements in (("v0", 16), ("v1", 16), ("max", 9), ("gauss", 9)):
        settings = Settings(version=version)
        assert (settings.elements, settings.plain_kernel_size) == (elements, 7)
        ours = model.count_parameters(model.dcls_network(settings))
        plain = model.count_parameters(model.plain_network(settings))
        assert 0.98 * plain < ours <= plain


def test_networks_differ_in_their_depthwise_layers_only() -> None:
    settings = Settings(seed=3)
    ours, plain = model.dcls_network(settings), model.plain_network(settings)
    assert all(isinstance(layer, Dcls2d) for layer in ours.depthwise_layers())
    assert all(type(layer) is nn.Conv2d for layer in plain.depthwise_layers())
    assert len(ours.depthwise_layers()) == model.DEPTH
    rest = {k: v for k, v in ours.state_dict().items() if ".depthwise." not in k}
    other = {k: v for k, v in plain.state_dict().items() if ".depthwise." not in k}
    assert rest.keys() == other.keys()
    assert all(torch.equal(rest[name], other[name]) for name in rest)
    again = model.dcls_network(Settings(seed=4)).state_dict()
    assert not torch.equal(ours.state_dict()["head.weight"], again["head.weight"])


@pytest.mark.parametrize("version", VERSIONS)
def test_layers_keep_the_map_and_start_with_positions_all_over_the_kernel(version: str) -> None:
    layer = model.dcls_network(Settings(version=version)).depthwise_layers()[0]
    x = torch.randn(2, model.CHANNELS, 12, 12)
    assert layer(x).shape == x.shape
    assert 4.3 < layer.P.std() < 4.9  # a uniform one has 16 / sqrt(12)
    assert layer.P.abs().max() <= 8
    normal = model.dcls_network(Settings(version=version, init_positions="normal"))
    assert 0.4 < normal.depthwise_layers()[0].P.std() < 0.6


# Training


@pytest.mark.parametrize(("steps", "warm_up"), [(430, 86), (4, 1), (1, 0)])
def test_schedule_warms_up_and_then_falls_to_zero(steps: int, warm_up: int) -> None:
    factors = [train.schedule(step, steps, warm_up) for step in range(steps + 1)]
    assert all(0 < factor <= 1 for factor in factors[:-1])
    assert factors[: warm_up + 1] == sorted(factors[: warm_up + 1])
    assert factors[warm_up] == 1
    assert factors[warm_up:] == sorted(factors[warm_up:], reverse=True)
    assert math.isclose(factors[steps], 0, abs_tol=1e-12)


def test_both_networks_learn(outcomes: list[model.Outcome]) -> None:
    for outcome in outcomes:
        losses = [epoch.loss for epoch in outcome.epochs]
        assert losses[0] > 1.8, outcome.name
        assert losses[-1] < 0.7 * losses[0], outcome.name
        assert outcome.accuracy > 0.35, outcome.name
        assert outcome.seconds > 0
    assert outcomes[0].accuracy > 0.7


def test_positions_move_and_stay_in_the_kernel(outcomes: list[model.Outcome]) -> None:
    for start, end in zip(
        outcomes[0].initial.depthwise_layers(),
        outcomes[0].network.depthwise_layers(),
        strict=True,
    ):
        assert (start.P != end.P).float().mean() > 0.9
        assert (start.SIG != end.SIG).float().mean() > 0.9
        assert end.P.abs().max() <= 8


def test_positions_are_clamped_after_each_step() -> None:
    settings = Settings(epochs=1, batch_size=10, lr=3.0, kernel_size=5)
    network = model.dcls_network(settings)
    extremes = []

    def look(layer: nn.Module, _: object) -> None:
        assert isinstance(layer, Dcls2d)
        extremes.append(float(layer.P.detach().abs().max()))

    for layer in network.depthwise_layers():
        layer.register_forward_pre_hook(look)
    train.train(network, some_digits(30), settings)
    assert len(extremes) == 4 * model.DEPTH, "before each of three steps, and after the last"
    for block in range(model.DEPTH):
        after_a_step = extremes[block :: model.DEPTH][1:]
        assert max(after_a_step) == 2.0, "with this rate the positions must have hit the border"


def test_a_run_repeats_bit_by_bit_and_depends_on_its_seed() -> None:
    digits = some_digits(60)

    def final(seed: int) -> list[torch.Tensor]:
        settings = Settings(epochs=1, batch_size=16, kernel_size=7, seed=seed)
        network = model.dcls_network(settings)
        train.train(network, digits, settings)
        return [parameter.detach() for parameter in network.parameters()]

    first, again, other = final(5), final(5), final(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_diverged_training_says_so() -> None:
    settings = Settings(epochs=2, batch_size=20, lr=1e30, kernel_size=3)
    network = model.plain_network(settings)
    with pytest.raises(train.DivergedError, match=r"the loss of epoch 1 is (nan|inf)"):
        train.train(network, some_digits(40), settings)


# Data parallel

# 40 images in batches of 13 over two processes: shards of 7 and 6, and at the end of 1 and 0.
REDUCED = Settings(epochs=2, batch_size=13, kernel_size=5, dtype="float64", quiet=True)
COMMAND = ["demo", "--epochs=2", "--batch-size=13", "--kernel-size=5", "--dtype=float64"]
TRAINED_ON, TESTED_ON = 40, 31

WORKER = f"""
import os, sys
import torch
from DCLS.cli import main
from DCLS.demo import train

def few_digits(*arguments, load=train.load):
    d = load(*arguments)
    return train.Digits(d.train_images[:{TRAINED_ON}], d.train_labels[:{TRAINED_ON}],
                        d.test_images[:{TESTED_ON}], d.test_labels[:{TESTED_ON}])

result = []
def compare(*arguments, compare=train.compare):
    outcomes = compare(*arguments)
    for outcome in outcomes:
        epochs = [(one.loss, one.accuracy) for one in outcome.epochs]
        result.append((outcome.network.state_dict(), epochs))
    return outcomes

train.load, train.compare = few_digits, compare
code = main({COMMAND!r})
torch.save(result, "result." + os.environ["RANK"])
sys.exit(code)
"""


def test_two_processes_train_the_same_networks_as_one_and_speak_once(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node=2", "worker.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es)") == 1
    assert done.stdout.count("epoch 1/2") == 2, "one line for each of the two networks"
    assert done.stdout.count("seconds an epoch") == 1
    assert done.stdout.count("picture: dcls-demo.png") == 1
    files = {"worker.py", "dcls-demo.png", "result.0", "result.1"}
    assert {path.name for path in tmp_path.iterdir()} == files

    digits = some_digits(TRAINED_ON, TESTED_ON, torch.float64)
    for number, alone in enumerate(train.compare(digits, REDUCED)):
        for rank in range(2):
            parameters, epochs = torch.load(tmp_path / f"result.{rank}", weights_only=True)[number]
            torch.testing.assert_close(
                parameters, alone.network.state_dict(), rtol=1e-8, atol=1e-10
            )
            expected = [(one.loss, one.accuracy) for one in alone.epochs]
            np.testing.assert_allclose(epochs, expected, rtol=1e-10)


# The report


def test_table_tells_the_truth(outcomes: list[model.Outcome]) -> None:
    head, rule, *rows = train.table(outcomes).splitlines()
    assert head.split("   ")[0].strip() == "network"
    assert set(rule) == {"-", " "}
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    for outcome, row in zip(outcomes, rows, strict=True):
        assert row.startswith(outcome.name)
        parameters, accuracy, seconds = row[len(outcome.name) :].split()
        assert int(parameters) == sum(p.numel() for p in outcome.network.parameters())
        assert accuracy == f"{100 * outcome.epochs[-1].accuracy:.2f}%"
        assert float(seconds) == pytest.approx(outcome.seconds, abs=0.006)


@pytest.mark.parametrize("version", VERSIONS)
def test_picture_marks_the_elements_where_the_kernel_has_them(version: str) -> None:
    layer = Dcls2d(3, 3, 1, dilated_kernel_size=(9, 9), groups=3, version=version)
    with torch.no_grad():
        layer.P.copy_(torch.tensor([[[[-3.0]], [[0.0]], [[2.0]]], [[[1.0]], [[4.0]], [[-4.0]]]]))
        layer.weight.fill_(1.0)
    dense, at = picture.kernels(layer), picture.positions(layer)
    assert dense.shape == (3, 9, 9)
    assert at.shape == (3, 1, 2)
    for channel in range(3):
        peak = np.unravel_index(dense[channel].argmax(), (9, 9))
        assert [index - 4 for index in peak] == at[channel, 0].tolist()


def test_distances_are_those_between_start_and_end(outcomes: list[model.Outcome]) -> None:
    start = outcomes[0].initial.depthwise_layers()[1].P.detach().double()
    end = outcomes[0].network.depthwise_layers()[1].P.detach().double()
    expected = (end - start).square().sum(0).sqrt().flatten().numpy()
    np.testing.assert_allclose(picture.distances_moved(outcomes[0])[1], expected, rtol=1e-12)


def test_picture_is_a_png_with_something_in_every_part(
    outcomes: list[model.Outcome], tmp_path: Path
) -> None:
    picture.save(outcomes, Settings(epochs=4, output=tmp_path / "both.png"))
    picture.save(outcomes[:1], Settings(epochs=4, output=tmp_path / "ours.png"))
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    both, ours = (image.imread(tmp_path / name)[..., :3] for name in ("both.png", "ours.png"))
    assert min(both.shape[:2]) > 1000
    assert ours.shape[1] == both.shape[1]
    assert ours.shape[0] < both.shape[0], "without the plain network there is a row less"
    for pixels in (both, ours):
        for part in np.array_split(pixels, 4, axis=0):
            for cell in np.array_split(part, 3, axis=1):
                ink = (cell < 0.98).any(axis=2).mean()
                assert ink > 0.01
        colours = (pixels * 255).astype(np.int64) @ [1 << 16, 1 << 8, 1]
        assert len(np.unique(colours)) > 200


@pytest.mark.parametrize(("suffix", "start"), [(".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_picture_can_be_drawn_in_other_formats(
    outcomes: list[model.Outcome], tmp_path: Path, suffix: str, start: bytes
) -> None:
    path = tmp_path / f"picture{suffix}"
    picture.save(outcomes, Settings(epochs=4, output=path))
    assert path.read_bytes().startswith(start)
