"""Connections with delays against loops in plain torch: whole sequences, and step by step."""

from __future__ import annotations

from typing import Any

import delay_references as references
import pytest
import torch
from torch import Tensor

import DCLS
from DCLS.delays import Delay, DelayLinear

SHARING = ("synaptic", "axonal", "dendritic")
LAYOUTS = ("TBN", "BTN", "BNT")
LONGEST, STEPS, BATCH, INPUTS, OUTPUTS = 4, 7, 2, 3, 2


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).detach().abs().max() <= 1e-10 * want.detach().abs().max().clamp_min(1)


def arranged(x: Tensor, layout: str) -> Tensor:
    """Gives a (T, B, N) the layout."""
    return x.permute(*("TBN".index(axis) for axis in layout))


def back(x: Tensor, layout: str) -> Tensor:
    return x.permute(*(layout.index(axis) for axis in "TBN"))


def make(sharing: str, version: str, **more: Any) -> DelayLinear:
    torch.manual_seed(0)
    layer = DelayLinear(
        INPUTS, OUTPUTS, LONGEST, sharing=sharing, version=version, count=2, bias=True, **more
    ).double()  # fmt: skip
    if layer.SIG is not None:
        layer.SIG.data.uniform_(0.3, 1.5)
    return layer


def parameters(layer: Any) -> list[Tensor]:
    return [p for p in (layer.weight, layer.P, layer.SIG, layer.bias) if p is not None]


def expected(layer: DelayLinear, x: Tensor) -> Tensor:
    """The reference, from ``P`` itself: the delay is what is left to the last point."""
    size = LONGEST + 1
    delays = size - 1 - (layer.P[0] + size // 2)
    return references.connection(
        x,
        layer.weight,
        delays,
        None if layer.SIG is None else layer.SIG[0],
        layer.bias,
        sharing=layer.sharing,
        version=layer.version,
        longest=LONGEST,
        earlier=0 if layer.causal else size // 2,
    )


def stepped(layer: Any, x: Tensor, taps: Any = None) -> Tensor:
    """Runs (T, B, N) one step at a time."""
    state, outputs = layer.initial_state(x.shape[1]), []
    for now in x:
        output, state = layer.step(now, state, taps)
        outputs.append(output)
    return torch.stack(outputs)


@pytest.mark.parametrize("version", DCLS.VERSIONS)
@pytest.mark.parametrize("sharing", SHARING)
def test_sequences_and_steps_are_those_of_the_loop(sharing: str, version: str) -> None:
    layers = [make(sharing, version, layout=layout) for layout in LAYOUTS]
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(STEPS, BATCH, OUTPUTS, dtype=torch.float64)
    want = expected(layers[0], x)
    wanted = torch.autograd.grad(want, (x, *parameters(layers[0])), grad)
    ways = {layout: lambda layer: back(layer(arranged(x, layer.layout)), layer.layout)
            for layout in LAYOUTS}  # fmt: skip
    every = list(zip(layers, ways.values(), strict=True))
    every += [(layers[0], lambda layer: stepped(layer, x)),
              (layers[0], lambda layer: stepped(layer, x, layer.taps()))]  # fmt: skip
    for layer, way in every:
        got = way(layer)
        close(got, want)
        found = torch.autograd.grad(got, (x, *parameters(layer)), grad)
        for one, other in zip(found, wanted, strict=True):
            close(one, other)


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_causal_and_without_a_batch(layout: str, sharing: str) -> None:
    layer = make(sharing, "gauss", layout=layout, causal=False)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    want = expected(layer, x)
    given = arranged(x, layout)
    close(back(layer(given), layout), want)
    batch = layout.index("B")
    close(layer(given.select(batch, 0)), layer(given).select(batch, 0))
    with pytest.raises(ValueError, match="causal must be True for steps"):
        layer.initial_state(1)
    with pytest.raises(ValueError, match="causal must be True for steps"):
        layer.step(x[0], x[0])
    with pytest.raises(ValueError, match="causal must be True for steps"):
        layer.taps()


@pytest.mark.parametrize("version", DCLS.VERSIONS)
def test_a_delay_for_each_channel(version: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64, requires_grad=True)
    for layout in LAYOUTS:
        layer = Delay(INPUTS, LONGEST, version=version, layout=layout).double()
        if layer.SIG is not None:
            layer.SIG.data.uniform_(0.3, 1.5)
        rows = [t for t in (layer.P, layer.SIG) if t is not None]
        size = LONGEST + 1
        want = references.connection(
            x,
            torch.eye(INPUTS, dtype=torch.float64).unsqueeze(-1),
            size - 1 - (layer.P[0] + size // 2),
            None if layer.SIG is None else layer.SIG[0],
            None,
            sharing="axonal",
            version=version,
            longest=LONGEST,
        )
        grad = torch.randn_like(want)
        wanted = torch.autograd.grad(want, (x, *rows), grad)
        for got in (back(layer(arranged(x, layout)), layout), stepped(layer, x)):
            close(got, want)
            found = torch.autograd.grad(got, (x, *rows), grad)
            for one, other in zip(found, wanted, strict=True):
                close(one, other)


def impulse_arrives(layer: Any, run: Any, delays: Tensor) -> None:
    """Each input alone has its impulse where its delays say."""
    x = torch.zeros(LONGEST + 3, 1, INPUTS, dtype=torch.float64)
    for i in range(INPUTS):
        x.zero_()
        x[1, 0, i] = 1
        y = back(run(arranged(x, layer.layout)), layer.layout)[:, 0]
        for o in range(y.shape[1]):
            at = [t for t in range(len(y)) if y[t, o].abs() > 1e-3]
            assert at == [1 + int(delays[o, i])], (o, i)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sharing", SHARING)
def test_an_impulse_arrives_where_the_delay_says(sharing: str, layout: str) -> None:
    torch.manual_seed(0)
    layer = DelayLinear(
        INPUTS, OUTPUTS, LONGEST, sharing=sharing, layout=layout, version="v1"
    ).double()
    layer.weight.data.fill_(1.0)
    # The last one is beyond the kernel: rounding clamps it first.
    shape = layer.P.shape[1:]
    delays = torch.tensor([0.0, 4, 2, 1, 3, 4.6], dtype=torch.float64)[: shape.numel()]
    layer.set_delays(delays.reshape(shape))
    close(layer.delays().flatten(), delays)
    rounded = delays.clamp(0, LONGEST).round()
    table = {
        "synaptic": lambda: rounded.reshape(OUTPUTS, INPUTS),
        "axonal": lambda: rounded.expand(OUTPUTS, -1),
        "dendritic": lambda: rounded.unsqueeze(-1).expand(-1, INPUTS),
    }[sharing]()
    if sharing != "synaptic":
        impulse_arrives(layer, layer, table)
    with DCLS.integer_positions(layer):
        impulse_arrives(layer, layer, table)
        impulse_arrives(layer, DCLS.fold(layer), table)
        with torch.no_grad():
            impulse_arrives(
                layer, lambda x: arranged(stepped(layer, back(x, layout)), layout), table
            )
    DCLS.round_(layer)
    impulse_arrives(layer, layer, table)
    impulse_arrives(layer, layer.to_conv(), table)


@pytest.mark.parametrize("sharing", SHARING)
def test_whole_delays_step_without_taps(sharing: str) -> None:
    layer = make(sharing, "gauss", mask=torch.tensor([[True, False, True], [True, True, False]]))
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    for version in ("v1", "v0"):
        layer.version = version
        DCLS.round_(layer)
        with torch.no_grad():
            kinds = {type(layer.taps().send).__name__}
            assert kinds == {"Bags"} if sharing == "synaptic" else {"Jumps"}
            close(stepped(layer, x), layer(x))
            before = layer._taps_now()
            assert layer._taps_now() is before, "kept between steps"
            layer.weight.data.mul_(2)
            close(stepped(layer, x), layer(x))
            assert layer._taps_now() is not before
    # With trained weights and fixed delays, too.
    layer.P.requires_grad_(False)
    assert type(layer.taps().send).__name__ in ("Bags", "Jumps")
    got = torch.autograd.grad(stepped(layer, x, layer.taps()).square().sum(), layer.weight)
    want = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    close(got[0], want[0])
    layer.P.requires_grad_(True)
    assert type(layer.taps().send).__name__ in ("Matrix", "Lines")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("version", ["v0", "gauss"])
def test_one_sequence_steps_with_whole_delays(version: str, sharing: str, count: int) -> None:
    layer = DelayLinear(5, 4, 6, sharing=sharing, count=count, version=version, bias=True)  # type: ignore[arg-type]
    layer.double()
    DCLS.round_(layer)
    layer.P.requires_grad_(False)
    x = torch.randn(12, 1, 5, dtype=torch.float64, requires_grad=True)
    want = layer(x)
    grad, of = torch.randn_like(want), (x, layer.weight, layer.bias)
    got = stepped(layer, x, layer.taps())
    close(got, want)
    found, wanted = (torch.autograd.grad(output, of, grad) for output in (got, want))
    for one, other in zip(found, wanted, strict=True):
        close(one, other)
