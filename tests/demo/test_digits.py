"""The demo's digits as images: what they are, and the depthwise layers of their networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import VERSIONS
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from DCLS import Dcls2d
from DCLS._types import Version
from DCLS.demo import picture
from DCLS.demo.tasks import Digits, count_parameters
from DCLS.demo.tasks.digits import CHANNELS, DEPTH, DigitsNet, numbers_per_element


def test_digits_are_split_in_the_proportions_of_the_classes_and_normalised() -> None:
    data = Digits().load(0)
    counts = [len(split.labels) for split in data]
    assert counts == [1078, 269, 450]
    assert all(split.inputs.shape == (n, 1, 24, 24) for n, split in zip(counts, data, strict=True))
    training = torch.cat([data.train.inputs, data.validation.inputs])
    assert training.dtype == torch.float64
    assert abs(training.mean()) < 1e-9
    assert abs(training.var() - 1) < 1e-9
    assert torch.bincount(data.test.labels, minlength=10).min() >= 43


@pytest.mark.parametrize(
    ("version", "size", "count", "elements", "side"),
    [
        ("v0", 17, None, 16, 7),
        ("v1", 17, None, 16, 7),
        ("max", 17, None, 9, 7),
        ("gauss", 17, None, 9, 7),
        ("v1", 3, None, 3, 7),
        ("gauss", 3, None, 1, 7),
        ("gauss", 17, 10, 10, 9),
        ("gauss", 17, 57, 57, 17),
    ],
)
def test_plain_network_has_at_least_as_many_parameters(
    version: Version, size: int, count: int | None, elements: int, side: int
) -> None:
    task = Digits(version, size, count)
    assert (task.elements, task.plain_kernel_size) == (elements, side)
    ours, plain = (count_parameters(task.network(kind, 0)) for kind in ("learned", "plain"))
    lead = side**2 - elements * numbers_per_element(version)
    assert lead >= 0
    assert plain - ours == DEPTH * CHANNELS * lead


def test_networks_differ_in_their_depthwise_layers_only() -> None:
    kinds = ("learned", "fixed", "plain")
    ours, fixed, plain = (Digits().network(kind, 3) for kind in kinds)
    for network, layer in ((ours, Dcls2d), (fixed, Dcls2d), (plain, nn.Conv2d)):
        assert [type(one) for one in network.depthwise_layers()] == [layer] * DEPTH
    rest, *others = (
        {name: value for name, value in network.state_dict().items() if ".depthwise." not in name}
        for network in (ours, fixed, plain)
    )
    for other in others:
        assert rest.keys() == other.keys()
        assert all(torch.equal(rest[name], other[name]) for name in rest)
    again = Digits().network("learned", 4).state_dict()
    assert not torch.equal(rest["head.weight"], again["head.weight"])


@pytest.mark.parametrize("version", VERSIONS)
def test_layers_keep_the_map_and_start_with_positions_all_over_the_kernel(version: Version) -> None:
    def layer(task: Digits) -> Dcls2d:
        network = task.network("learned", 0)
        assert isinstance(network, DigitsNet)
        first = network.depthwise_layers()[0]
        assert isinstance(first, Dcls2d)
        return first

    spread = layer(Digits(version))
    x = torch.randn(2, CHANNELS, 12, 12)
    assert spread(x).shape == x.shape
    assert 4.3 < spread.P.std() < 4.9  # a uniform one has 16 / sqrt(12)
    assert spread.P.abs().max() <= 8
    assert 0.4 < layer(Digits(version, init_positions="normal")).P.std() < 0.6


@pytest.mark.parametrize("version", VERSIONS)
def test_picture_marks_the_elements_where_the_kernel_has_them(version: Version) -> None:
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
