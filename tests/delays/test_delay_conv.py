"""Convolutions with delays against loops in plain torch: whole sequences, and step by step."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import delay_references as references
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import DCLS
from DCLS.delays import DelayConv1d, DelayConv2d, unroll

CLASSES = {1: DelayConv1d, 2: DelayConv2d}
LAYOUTS = {1: ("TBCL", "BTCL", "BCTL", "BCLT"), 2: ("TBCHW", "BTCHW", "BCTHW", "BCHWT")}
FIRST = {1: "TBCL", 2: "TBCHW"}
LONGEST, STEPS, BATCH = 3, 5, 2
SIZE = {1: (5,), 2: (4, 5)}
POINTS = {1: (3,), 2: (2, 3)}
every_dim = pytest.mark.parametrize("space", [1, 2])


def make(space: int, **more: Any) -> Any:
    torch.manual_seed(0)
    layer = CLASSES[space](
        2, 4, POINTS[space], LONGEST, **{"groups": 2, "bias": True, "stride": 2, "padding": 1,
                                        "count": 2, **more}
    ).double()  # fmt: skip
    if layer.SIG is not None:
        layer.SIG.data.uniform_(0.3, 1.5)
    return layer


def sequence(space: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, BATCH, 2, *SIZE[space], dtype=torch.float64, generator=generator)


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).detach().abs().max() <= 1e-10 * want.detach().abs().max().clamp_min(1)


def expected(layer: Any, x: Tensor, padding: int = 1) -> Tensor:
    """Shifts the input by each whole delay, and convolves over space with what arrives then."""
    space = x.ndim - 3
    size, lead = LONGEST + 1, layer.weight.shape[:-1]
    delays = size - 1 - (layer.P[0] + size // 2)
    kernels = torch.zeros(size, *lead, dtype=torch.float64)
    for at in itertools.product(*(range(n) for n in lead)):
        for k in range(layer.weight.shape[-1]):
            width = None if layer.SIG is None else layer.SIG[0][at][k]
            # The gauss of Dcls2_1d is wider: |SIG| + 1.
            if space == 1 and layer.version == "gauss":
                width = width.abs() + 1 - references.SMALLEST["gauss"]
            parts = references.line(layer.version, delays[at][k], width, LONGEST)
            place = torch.zeros(lead, dtype=torch.float64)
            place[at] = 1
            kernels = kernels + torch.stack([layer.weight[at][k] * part * place for part in parts])
    convolve = F.conv1d if space == 1 else F.conv2d
    earlier = 0 if layer.causal else size // 2
    outputs = []
    for t in range(len(x)):
        sums = [
            convolve(x[t - d + earlier], kernels[d], None, 2, padding, groups=layer.groups)
            for d in range(size) if 0 <= t - d + earlier < len(x)
        ]  # fmt: skip
        outputs.append(sum(sums) + layer.bias.view(-1, *(1,) * space))
    return torch.stack(outputs)


def stepped(layer: Any, x: Tensor) -> Tensor:
    state, outputs = layer.initial_state(x.shape[1], x.shape[3:]), []
    for now in x:
        output, state = layer.step(now, state)
        outputs.append(output)
    return torch.stack(outputs)


@every_dim
@pytest.mark.parametrize("version", ["v1", "gauss", "max"])
def test_sequences_and_steps_are_those_of_the_loop(version: str, space: int) -> None:
    layer = make(space, version=version)
    x = sequence(space).requires_grad_()
    want = expected(layer, x)
    inputs = [x, *layer.parameters()]
    grad = torch.randn_like(want)
    wanted = torch.autograd.grad(want, inputs, grad)
    ways = [stepped(layer, x)]
    for layout in LAYOUTS[space]:
        layer.layout = layout
        to = [FIRST[space].index(axis) for axis in layout]
        back = [layout.index(axis) for axis in FIRST[space]]
        ways.append(layer(x.permute(to)).permute(back))
        alone = layer(x[:, 0].permute([i - (i > 1) for i in to if i != 1]))
        close(alone, layer(x.permute(to)).select(layout.index("B"), 0))
    for got in ways:
        close(got, want)
        for one, other in zip(torch.autograd.grad(got, inputs, grad), wanted, strict=True):
            close(one, other)


@every_dim
def test_not_causal(space: int) -> None:
    layer = make(space, causal=False)
    close(layer(sequence(space)), expected(layer, sequence(space)))
    with pytest.raises(ValueError, match="causal must be True for steps"):
        layer.initial_state(2, SIZE[space])


@every_dim
def test_an_impulse_arrives_where_the_delay_says(space: int) -> None:
    for layout in LAYOUTS[space]:
        layer = CLASSES[space](1, 1, 1, LONGEST, layout=layout, version="v1").double()
        layer.weight.data.fill_(1.0)
        layer.set_delays(torch.tensor(1.6))
        x = torch.zeros(STEPS, 1, 1, *SIZE[space], dtype=torch.float64)
        x[1, ..., 2] = 1
        x = x.permute([FIRST[space].index(axis) for axis in layout])
        time = layout.index("T")

        def arrivals(y: Tensor) -> list[int]:
            rows = y.movedim(time, 0).flatten(1)  # noqa: B023
            return [t for t in range(STEPS) if rows[t].max() > 0.9]

        with DCLS.integer_positions(layer):
            assert arrivals(layer(x)) == arrivals(DCLS.fold(layer)(x)) == [3]
        DCLS.round_(layer)
        assert arrivals(layer(x)) == [3]


@every_dim
def test_it_is_used_as_other_layers_are(space: int) -> None:
    layer, x = make(space, padding="valid"), sequence(space)
    want = layer(x)
    close(stepped(layer, x), want)
    DCLS.WidthSchedule(layer, start=2.0, steps=3)
    close(stepped(layer, x), layer(x))
    want = layer(x)
    for same in (DCLS.fold(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        close(same(x), want)
    assert {g["name"] for g in DCLS.param_groups(layer, 1e-3)} >= {"positions", "widths"}
    other = {1: DCLS.Dcls2_1d, 2: DCLS.Dcls3_1d}[space](
        2, 4, 2, dense_kernel_size=POINTS[space], dilated_kernel_size=LONGEST + 1,
        stride=layer.stride, padding=layer.padding, groups=2,
    ).double()  # fmt: skip
    other.load_state_dict(layer.state_dict())
    close(other(x.movedim(0, -1)), want.movedim(0, -1))
    assert layer.explain(x).method in ("direct", "conv")
    assert f"kernel_size={POINTS[space]}, max_delay=3" in repr(layer)
    with pytest.raises(TypeError, match="layer must be a DelayLinear or a Delay"):
        unroll(lambda a, b: (a, b), layer, x)
    same = make(space, padding="same", stride=1)
    assert same(x).shape[3:] == x.shape[3:]
    close(stepped(same, x), same(x))


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"in_channels": 0}, ValueError, "in_channels must be a positive int"),
        ({"out_channels": 1.5}, TypeError, "out_channels must be"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be"),
        ({"kernel_size": (3, 3)}, ValueError, "kernel_size must be"),
        ({"max_delay": -1}, ValueError, "max_delay must be"),
        ({"stride": 0}, ValueError, "stride must be"),
        ({"padding": -1}, ValueError, "padding must be"),
        ({"padding": "causal"}, ValueError, "padding must be 'same', 'valid', an int"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' takes a stride of 1"),
        ({"groups": 3}, ValueError, "in_channels must be divisible by groups"),
        ({"count": 0}, ValueError, "count must be"),
        ({"version": "v7"}, ValueError, "version must be"),
        ({"layout": "TBN"}, ValueError, "layout must be one of TBCL, BTCL, BCTL, BCLT"),
        ({"causal": 3}, TypeError, "causal must be a bool"),
        ({"bias": "no"}, TypeError, "bias must be a bool"),
        ({"init_delays": 4}, ValueError, "init_delays must be from 0 to max_delay=3"),
        ({"init_width": -1.0}, ValueError, "init_width must be"),
        ({"method": "fft"}, ValueError, "method must be"),
        ({"dtype": torch.int8}, TypeError, "dtype must be"),
    ],
)
def test_bad_arguments(wrong: dict[str, Any], error: type[Exception], text: str) -> None:
    given = {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "max_delay": 3, **wrong}
    with pytest.raises(error, match=text):
        DelayConv1d(**given)


@every_dim
def test_bad_inputs(space: int) -> None:
    layer, x = make(space), sequence(space)
    state = layer.initial_state(BATCH, SIZE[space])
    for wrong, error, text in [
        (x[:, :, :1], ValueError, "input must have 2 channels"),
        (x[0, 0], ValueError, "input must have the axes TBC"),
        (None, TypeError, "input must be a Tensor"),
    ]:
        with pytest.raises(error, match=text):
            layer(wrong)
    for args, error, text in [
        ((x[0, :, :1], state), ValueError, r"input must have the shape \(batch, 2\) and"),
        ((x, state), ValueError, r"input must have the shape \(batch, 2\) and"),
        ((x[0], state[1:]), ValueError, "state must be what"),
        ((x[0], 3), TypeError, "state must be a Tensor"),
    ]:
        with pytest.raises(error, match=text):
            layer.step(*args)
    with pytest.raises(ValueError, match="size must be"):
        layer.initial_state(2, (1,) * 3)
    with pytest.raises(ValueError, match="size must fit the kernel"):
        make(space, padding=0).initial_state(2, 1)
    with pytest.raises(TypeError, match="batch must be"):
        layer.initial_state(1.0, SIZE[space])


@every_dim
@pytest.mark.parametrize("causal", [True, False])
def test_the_padding_in_time_follows_a_longest_delay_that_is_set_later(
    space: int, causal: bool
) -> None:
    layer, x = make(space, causal=causal), sequence(space)
    layer.dilated_kernel_size = LONGEST + 3
    longer = CLASSES[space](
        2, 4, POINTS[space], LONGEST + 2, groups=2, bias=True, stride=2, padding=1, count=2,
        causal=causal,
    ).double()  # fmt: skip
    longer.load_state_dict(layer.state_dict())
    assert layer.max_delay == LONGEST + 2
    close(layer(x), longer(x))
