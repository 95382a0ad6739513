"""Delay layers with the toolkit, in checkpoints, compiled, and with what does not fit them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import DCLS
from DCLS.delays import Delay, DelayLinear, unroll

LAYERS = {
    "synaptic": lambda **more: DelayLinear(4, 3, 6, **more),
    "axonal": lambda **more: DelayLinear(4, 3, 6, sharing="axonal", **more),
    "dendritic": lambda **more: DelayLinear(4, 3, 6, sharing="dendritic", count=2, **more),
    "delay": lambda **more: Delay(4, 6, **more),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return LAYERS[kind](**more)


def sequence(steps: int = 9, channels: int = 4) -> Tensor:
    return torch.randn(steps, 2, channels, generator=torch.Generator().manual_seed(1))


@every_layer
def test_the_toolkit_works_on_it(kind: str) -> None:
    layer = make(kind)
    model = nn.Sequential(layer, nn.ReLU())
    x = sequence()
    assert not any(layer._lost_elements().flatten())
    schedule = DCLS.WidthSchedule(model, start=3, steps=2)
    assert layer.SIG.unique().item() == 3
    assert layer.known_width == 3
    schedule.step()
    schedule.step()
    assert layer.SIG.unique().item() == pytest.approx(0.23)
    groups = {g["name"]: len(g["params"]) for g in DCLS.param_groups(model, 1e-3)}
    assert groups["positions"] == groups["widths"] == 1
    optimizer = torch.optim.SGD(DCLS.param_groups(model, 1e-3, position_lr_scale=1e6), lr=1e-3)
    DCLS.clamp_after_step(optimizer, model)
    model(x).square().sum().backward()
    assert layer.P.grad.abs().max() > 0
    optimizer.step()
    assert layer.delays().min() >= 0
    assert layer.delays().max() <= layer.max_delay
    tracker = DCLS.PositionTracker(model)
    tracker.update()
    assert tracker.positions()["0"].shape[1] == 1
    layer.set_delays(torch.full_like(layer.delays(), 99.0))
    assert DCLS.lost_elements(model)["0"].all()
    DCLS.clamp_(model)
    assert (layer.delays() == layer.max_delay).all()
    layer.reset_parameters()
    before, bits = layer(x), layer.P.clone()
    with DCLS.integer_positions(model):
        assert torch.equal(layer.delays(), layer.delays().round())
        assert not torch.equal(layer(x), before)
    assert torch.equal(layer.P, bits)
    assert torch.equal(layer(x), before)
    frozen = DCLS.freeze(model)
    with torch.no_grad():
        assert torch.allclose(frozen(x), before.relu(), atol=1e-6)


@every_layer
def test_figures(kind: str) -> None:
    pytest.importorskip("matplotlib")
    layer = make(kind)
    for figure in (DCLS.plot.delays(layer), DCLS.plot.kernels(layer), DCLS.plot.positions(layer),
                   DCLS.plot.density(layer)):  # fmt: skip
        assert figure.axes


@every_layer
@pytest.mark.parametrize("layout", ["TBN", "BNT"])
def test_folded_it_needs_no_dcls(kind: str, layout: str) -> None:
    layer = make(kind, layout=layout, causal=kind != "delay")
    model = nn.Sequential(layer, nn.Tanh()).eval()
    x = sequence() if layout == "TBN" else sequence().permute(1, 2, 0)
    want = model(x)
    folded = DCLS.fold(model)
    assert torch.allclose(folded(x), want, atol=1e-6)
    modules = {type(m).__module__.partition(".")[0] for m in folded.modules()}
    assert "DCLS" not in modules
    assert b"DCLS" not in pickle.dumps(folded)
    assert torch.allclose(pickle.loads(pickle.dumps(folded))(x), want, atol=1e-6)
    assert not any(m.training for m in folded.modules())
    assert torch.allclose(torch.jit.script(folded)(x), want, atol=1e-6)
    DCLS.fold(model, inplace=True)
    assert torch.allclose(model(x), want, atol=1e-6)


@every_layer
def test_it_is_copied_saved_and_cast(kind: str) -> None:
    layer, x = make(kind), sequence()
    names = {"P", "SIG"} if kind == "delay" else {"weight", "P", "SIG"}
    assert set(layer.state_dict()) == names
    other = LAYERS[kind]()
    other.load_state_dict(layer.state_dict())
    for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same(x), layer(x))
        assert repr(same) == repr(layer)
    assert "max_delay=6" in repr(layer)
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    state = half.initial_state(2)
    assert state.dtype == torch.bfloat16
    assert half.step(x[0].bfloat16(), state)[0].dtype == torch.bfloat16
    meta = LAYERS[kind](device="meta")
    assert meta.P.is_meta
    assert meta.initial_state(2).is_meta
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(layer(x).float(), copy.deepcopy(layer)(x).float())
        state = layer.initial_state(2)
        output, state = layer.step(x[0], state)
        assert output.isfinite().all()


def test_a_synaptic_layer_is_a_dcls1d() -> None:
    torch.manual_seed(0)
    plain = DCLS.Dcls1d(4, 3, 2, dilated_kernel_size=7, bias=False, padding="causal")
    layer = DelayLinear(4, 3, 6, count=2)
    layer.load_state_dict(plain.state_dict())
    x = sequence()
    assert torch.allclose(layer(x), plain(x.permute(1, 2, 0)).permute(2, 0, 1), atol=1e-6)
    assert isinstance(layer, DCLS.nn._DclsNd)
    assert layer.explain(x).method in ("direct", "conv")
    assert DelayLinear(4, 3, 6, method="direct").explain(x).source == "asked"
    assert make("axonal").explain(x).method == "im2col"
    assert make("delay").explain(x).method in ("direct", "conv")
    assert make("dendritic", method="conv").explain(x).method == "conv"
    for method in ("conv", "direct"):
        one, two = make("dendritic", method=method).double(), make("dendritic").double()
        assert torch.allclose(one(x.double()), two(x.double()), atol=1e-12)
    with pytest.raises(TypeError, match="DelayLinear cannot be made from a Conv1d"):
        DelayLinear.from_conv(nn.Conv1d(1, 1, 3), dilated_kernel_size=5)


def test_a_delay_is_what_snntorch_has() -> None:
    # Its linear kernel is ours of v1; a delay at the end of its range included.
    delay = Delay(3, 4, torch.tensor([0.0, 1.5, 4.0]), version="v1", learn_delay=False)
    assert torch.equal(delay.delays(), torch.tensor([0.0, 1.5, 4.0]))
    assert not any(p.requires_grad for p in delay.parameters())
    x = torch.zeros(7, 1, 3)
    x[1] = 1
    y = delay(x)[:, 0].T
    want = torch.zeros(3, 7)
    want[0, 1], want[1, 2], want[1, 3], want[2, 5] = 1, 0.5, 0.5, 1
    assert torch.allclose(y, want, atol=1e-6)
    assert delay.channels == 3
    assert len(list(delay.parameters())) == 1
    delay.set_delays(torch.tensor(2.0))
    assert torch.equal(delay.delays(), torch.full((3,), 2.0))
    delay.set_delays(torch.tensor([3.0, 2.0, 1.0]))
    assert torch.equal(delay.delays(), torch.tensor([3.0, 2.0, 1.0]))


def test_where_delays_start() -> None:
    torch.manual_seed(0)
    uniform = DelayLinear(40, 30, 20).delays()
    assert uniform.shape == (30, 40, 1)
    assert uniform.min() >= 0
    assert uniform.max() <= 20
    assert torch.histc(uniform, 5, 0, 20).min() > 180
    assert torch.allclose(DelayLinear(4, 3, 20, init_delays=2.5).delays(), torch.tensor(2.5))
    rows = torch.arange(4.0)[:, None]
    axonal = DelayLinear(4, 3, 20, sharing="axonal", init_delays=rows)
    assert torch.equal(axonal.delays(), rows)

    def longest(delays: Tensor, max_delay: int) -> None:
        assert delays.shape == (3, 4, 1)
        delays.fill_(max_delay + 5)

    assert (DelayLinear(4, 3, 20, init_delays=longest).delays() == 20).all()
    given = DelayLinear(4, 3, 20, init_delays=lambda d, most: d + most / 4)
    assert (given.delays() == 5).all()
    given.set_delays(torch.tensor(7.0))
    given.reset_parameters()
    assert (given.delays() == 5).all()
    # A delay that starts on a step learns in the versions with a kink there, too.
    for version in DCLS.VERSIONS:
        layer = DelayLinear(4, 3, 20, init_delays=12, version=version)
        assert torch.allclose(layer.delays(), torch.tensor(12.0), atol=1e-4)
        layer(torch.randn(40, 2, 4)).square().sum().backward()
        assert layer.P.grad.abs().min() > 0, version
    assert DelayLinear(4, 3, 20, init_width=10.0).SIG.unique().item() == 10
    assert DelayLinear(4, 3, 0).max_delay == 0
    assert DelayLinear(4, 3, 0)(sequence()).shape == (9, 2, 3)


def test_a_mask_survives_the_training() -> None:
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    layer = make("synaptic", mask=mask, bias=True)
    twin = LAYERS["synaptic"](mask=mask, bias=True)
    x = sequence()
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        layer(x).square().sum().backward()
        optimizer.step()
    assert (layer.weight[~mask] == 0).all()
    layer.weight.data[~mask] = torch.nan
    assert (layer.kernel()[~mask] == 0).all()
    got = layer(x)
    assert got.isfinite().all()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), got)
    assert torch.equal(twin.mask, mask)
    assert torch.allclose(DCLS.fold(layer)(x), got, atol=1e-6)
    state = layer.initial_state(2)
    for t in range(9):
        output, state = layer.step(x[t], state)
        assert torch.allclose(output, got[t], atol=1e-5)
    assert f"mask={int(mask.sum())} of 12 connections" in repr(layer)
    mask.fill_(True)
    assert not layer.mask.all(), "a copy"


@every_layer
def test_the_state_is_explicit(kind: str) -> None:
    layer, x = make(kind), sequence()
    want = layer(x).detach()
    state = layer.initial_state(2)
    assert state.shape[0] == 6
    assert state.shape[2] == 2
    kept = []
    for t in range(9):
        kept.append(state)
        output, state = layer.step(x[t], state)
        # Cut, as truncated backpropagation does.
        assert output.requires_grad
        output.sum().backward()
        state = state.detach()
        assert torch.allclose(output, want[t], atol=1e-5)
    # An old state still serves: nothing was written into it.
    again, _ = layer.step(x[3], kept[3])
    assert torch.allclose(again, want[3], atol=1e-5)
    loaded = pickle.loads(pickle.dumps(kept[5]))
    assert torch.allclose(layer.step(x[5], loaded)[0], want[5], atol=1e-5)
    # Sequences that have ended are dropped.
    fewer, _ = layer.step(x[5, :1], kept[5][..., :1])
    assert torch.allclose(fewer, want[5, :1], atol=1e-5)


@every_layer
def test_without_sequences_and_without_delays(kind: str) -> None:
    layer = make(kind)
    for rounded in (False, True):
        if rounded:
            DCLS.round_(layer)
        with torch.no_grad():
            output, state = layer.step(torch.randn(0, 4), layer.initial_state(0))
            assert output.shape == layer(torch.randn(9, 0, 4))[0].shape
            assert state.shape == layer.initial_state(0).shape
    none = Delay(4, 0) if kind == "delay" else DelayLinear(4, 3, 0, sharing=kind)  # type: ignore[arg-type]
    x = sequence()
    output, state = none.step(x[0], none.initial_state(2))
    assert state.shape[0] == 0
    assert torch.allclose(output, none(x)[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["synaptic", "axonal"])
def test_torch_compiles_and_exports_it(kind: str) -> None:
    layer, x = make(kind).eval(), sequence()
    want = layer(x)
    assert torch.allclose(torch.compile(layer, backend="eager")(x), want, atol=1e-5)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), want, atol=1e-5)
    step = torch.compile(layer.step, backend="eager", fullgraph=True)
    state = layer.initial_state(2)
    for t in range(3):
        output, state = step(x[t], state.detach())
        assert output.requires_grad
        assert torch.allclose(output, want[t], atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_layer
def test_torch_traces_it(kind: str) -> None:
    layer, x = make(kind), sequence()
    want = layer(x)
    for method in ("auto", "direct") if kind != "axonal" else ("auto",):
        layer.method = method
        assert torch.allclose(torch.fx.symbolic_trace(layer)(x), want, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(torch.jit.trace(layer, (x,))(x), want, atol=1e-5)
    assert torch.allclose(torch.func.vmap(layer)(x[None])[0], want, atol=1e-5)


def test_tune_and_the_repulsive_loss_take_them() -> None:
    model = nn.Sequential(
        DelayLinear(4, 6, 6, count=2), DelayLinear(6, 6, 6, sharing="axonal", count=2),
        DelayLinear(6, 4, 6, sharing="dendritic"), Delay(4, 6),
    )  # fmt: skip
    report = DCLS.tune(model, sequence(), seconds=0.01, progress=False)
    assert [row.method for row in report.rows][1] == "im2col"
    assert len(report.rows) == 4
    assert DCLS.losses.repulsion(model).isfinite()


def leaky(current: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
    membrane = current if membrane is None else 0.5 * membrane + current
    return torch.tanh(membrane), membrane


@pytest.mark.parametrize("layout", ["TBN", "BTN", "BNT"])
def test_recurrent_delays(layout: str) -> None:
    torch.manual_seed(0)
    layer = DelayLinear(3, 3, 4, layout=layout).double()
    x = torch.randn(8, 2, 3, dtype=torch.float64)
    outputs: list[Tensor] = []
    membrane = None
    kernel = layer.kernel()
    for t in range(8):
        back = sum(
            (outputs[t - 1 - d] @ kernel[..., 4 - d].T for d in range(5) if t - 1 - d >= 0),
            torch.zeros(2, 3, dtype=torch.float64),
        )
        output, membrane = leaky(x[t] + back, membrane)
        outputs.append(output)
    want = torch.stack(outputs)
    order = ["TBN".index(axis) for axis in layout]
    got, _ = unroll(leaky, layer, x.permute(order))
    assert torch.allclose(got, want.permute(order), atol=1e-12)
    grads = [torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (got, want)]
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    # In two parts, the graph cut between them.
    first, carry = unroll(leaky, layer, x[:3].permute(order))
    cut: Any = tuple(part.detach() for part in carry)
    second, _ = unroll(leaky, layer, x[3:].permute(order), cut)
    both = torch.cat([first, second], layout.index("T"))
    assert torch.allclose(both, want.permute(order), atol=1e-12)
