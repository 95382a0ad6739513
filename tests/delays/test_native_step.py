"""Steps of whole delays by the native library, against the torch forms."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import DCLS
from DCLS import _backend
from DCLS._native.delay import WholeDelays
from DCLS.delays import Delay, DelayConv1d, DelayLinear

pytestmark = pytest.mark.skipif(_backend.native is None, reason="the native library is missing")
KINDS = ("synaptic", "axonal", "dendritic", "delay")


def make(kind: str, dtype: torch.dtype = torch.float64, longest: int = 6, **more: Any) -> Any:
    torch.manual_seed(0)
    if kind == "delay":
        layer: Any = Delay(9, longest, dtype=dtype, version="v1")
    else:
        layer = DelayLinear(9, 70, longest, sharing=kind, dtype=dtype, version="v1", **more)  # type: ignore[arg-type]
    DCLS.round_(layer)
    return layer


@pytest.fixture
def calls() -> Iterator[mock.Mock]:
    """What the native library was asked for."""
    with mock.patch.object(WholeDelays, "onto", autospec=True, side_effect=WholeDelays.onto) as spy:
        yield spy


def steps(layer: Any, batch: int, in_place: bool, taps: Any = None) -> tuple[Tensor, Tensor]:
    """Takes steps from a state that holds something; one value is infinite, and one NaN."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, batch, 9, generator=generator).to(layer.P.dtype)
    state = torch.randn(layer.initial_state(batch).shape, generator=generator).to(x.dtype)
    if batch > 1:
        x[5, 1, 2], x[5, 0, 3] = torch.inf, torch.nan
    outputs = []
    for now in x:
        if in_place:
            outputs.append(layer.step_(now, state, taps))
        else:
            output, state = layer.step(now, state, taps)
            outputs.append(output)
    return torch.stack(outputs), state


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_the_torch_form(kind: str, calls: mock.Mock) -> None:
    cases = [
        (torch.float64, 1e-12, 6, {"count": 2, "bias": True}),
        (torch.float64, 1e-12, 0, {}),
        (torch.float32, 1e-5, 6, {"bias": True}),
        (torch.bfloat16, 3e-2, 6, {}),
        (torch.float16, 3e-3, 6, {}),
    ]
    for dtype, tolerance, longest, more in cases:
        layer = make(kind, dtype, longest, **(more if kind != "delay" else {}))
        for batch in (0, 1, 37):
            got = steps(layer, batch, False)
            assert calls.call_count == 9
            assert calls.call_args.args[0].weight.dtype == dtype
            same = steps(layer, batch, True)
            assert calls.call_count == 18
            with mock.patch.object(_backend, "native", None):
                want, also = steps(layer, batch, False), steps(layer, batch, True)
            assert calls.call_count == 18
            for one, other, place, torch_place in zip(got, want, same, also, strict=True):
                assert one.dtype == dtype
                assert torch.equal(one.isfinite(), other.isfinite())
                torch.testing.assert_close(
                    one, other, rtol=tolerance, atol=tolerance, equal_nan=True
                )
                assert torch.equal(place.nan_to_num(), one.nan_to_num())
                assert torch.equal(torch_place.nan_to_num(), other.nan_to_num())
            calls.reset_mock()


@torch.no_grad()
def test_the_number_of_threads_changes_nothing(calls: mock.Mock) -> None:
    torch.manual_seed(0)
    layer, x = DelayLinear(64, 200, 9), torch.randn(40, 64)
    DCLS.round_(layer)
    threads, state = torch.get_num_threads(), torch.randn(9, 200, 40)
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(layer.step(x, state))
    finally:
        torch.set_num_threads(threads)
    assert calls.call_count == 3
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", KINDS)
def test_torch_computes_what_the_library_cannot(kind: str, calls: mock.Mock) -> None:
    layer = make(kind)
    layer.requires_grad_(False)
    taps, state = layer.taps(), layer.initial_state(3)
    x = torch.randn(3, 9, dtype=torch.float64)
    layer.step(x, state, taps)
    assert calls.call_count == 1
    want = layer.step(x, state, taps)[0]
    calls.reset_mock()
    leaf = x.clone().requires_grad_()
    sent = layer.step(leaf, state, taps)[1].sum()
    assert torch.autograd.grad(sent, leaf)[0].abs().sum() > 0
    tangent = torch.autograd.forward_ad
    with tangent.dual_level():
        # Of one sequence: torch's bags, which serve several, have no forward mode.
        one = tangent.make_dual(x[:1], torch.ones_like(x[:1]))
        dual = layer.step(one, state[..., :1].contiguous(), taps)[0]
        assert tangent.unpack_dual(dual).tangent is not None
    several = torch.func.vmap(lambda now, old: layer.step(now, old, taps)[0])
    vmapped = several(x[None], state[None])
    compiled = torch.compile(lambda now, old: layer.step(now, old, taps)[0], backend="eager")
    negative = torch.view_as_complex(torch.stack((x, -x), -1)).conj().imag
    assert negative.is_neg()
    wide = torch.zeros(*state.shape[:2], 5, dtype=torch.float64)[..., 1:4]
    ways = [vmapped[0], compiled(x, state), layer.step(x, wide, taps)[0]]
    if kind != "dendritic":  # whose matrix product makes plain memory of it
        ways.append(layer.step(negative, state, taps)[0])
    assert not calls.called
    for other in ways:
        assert torch.allclose(other, want, atol=1e-12)
    if kind in ("synaptic", "delay"):  # a matrix product takes no other dtype
        assert layer.step(x.float(), state, taps)[0].dtype == torch.float64
        assert not calls.called
    with pytest.raises(RuntimeError):  # taps of a layer of other sizes
        layer.step(x, state, make(kind, longest=7).taps())
    assert not calls.called


def test_steps_in_place() -> None:
    layer = make("synaptic")
    state, x = layer.initial_state(3), torch.randn(3, 9, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="step_ has no gradients"):
        layer.step_(x, state)
    with torch.no_grad():
        address = state.data_ptr()
        want = layer.step(x, state)
        wide = torch.zeros(6, 70, 5, dtype=torch.float64)
        for target in (state, wide[..., 1:4]):
            assert torch.allclose(layer.step_(x, target), want[0], atol=1e-12)
            assert torch.allclose(target, want[1], atol=1e-12)
        assert state.data_ptr() == address
        assert not wide[..., 0].any()
        with pytest.raises(TypeError, match="state must be a Tensor"):
            layer.step_(x, None)
        with pytest.raises(ValueError, match="state must be what"):
            layer.step_(x, state[:-1])
        # A convolution and interpolated delays have no native step.
        for other, now in ((DelayConv1d(2, 3, 3, 5), torch.randn(4, 2, 8)),
                           (DelayLinear(9, 70, 6), torch.randn(3, 9))):  # fmt: skip
            old = other.initial_state(len(now), *((8,) if now.ndim == 3 else ()))
            output, new = other.step(now, old)
            assert torch.equal(other.step_(now, old), output)
            assert torch.equal(old, new)


@torch.no_grad()
def test_taps_are_copied_and_pickled(calls: mock.Mock) -> None:
    layer = make("synaptic")
    taps, x = layer.taps(), torch.randn(1, 9, dtype=torch.float64)
    state = layer.initial_state(1)
    want = layer.step(x, state, taps)[0]
    for same in (copy.deepcopy(taps), pickle.loads(pickle.dumps(taps))):
        assert torch.equal(layer.step(x, state, same)[0], want)
    assert calls.call_count == 3


@torch.no_grad()
def test_kept_taps_are_compared_by_their_bytes() -> None:
    layer = make("synaptic")
    layer.weight[0, 0] = torch.nan
    kept = layer._taps_now()
    assert layer._taps_now() is kept, "NaN is the same NaN"
    layer.weight.data[-1, -1] += 1e-9
    assert layer._taps_now() is not kept
    kept = layer._taps_now()
    layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    assert not layer.weight.is_contiguous()
    layer.weight[0, 0] = 1
    changed = layer._taps_now()
    assert changed is not kept
    assert layer._taps_now() is changed
