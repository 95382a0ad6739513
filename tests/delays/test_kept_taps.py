"""What a step keeps from the last one is never stale, and never read from freed memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import DCLS
from DCLS.delays import Delay, DelayConv1d, DelayLinear

LAYERS: dict[str, Callable[[], Any]] = {
    "synaptic": lambda: DelayLinear(4, 3, 6),
    "axonal": lambda: DelayLinear(4, 3, 6, sharing="axonal"),
    "dendritic": lambda: DelayLinear(4, 3, 6, sharing="dendritic"),
    "delay": lambda: Delay(4, 6),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def stepped(layer: Any, now: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = layer.step(now, layer.initial_state(len(now)))
    return result


@every_layer
def test_freed_memory_is_named(kind: str) -> None:
    layer, now = LAYERS[kind](), torch.randn(2, 4)
    with torch.no_grad():
        stepped(layer, now)
        layer.P.untyped_storage().resize_(0)
        for call in (lambda: stepped(layer, now), layer.taps):
            with pytest.raises(ValueError, match="P must have memory"):
                call()


def test_a_hook_of_the_builder_counts_at_once() -> None:
    layer, now = DelayLinear(4, 3, 6), torch.randn(2, 4)
    with torch.no_grad():
        before = stepped(layer, now)
        handle = layer.DCK.register_forward_hook(lambda *args: 2 * args[-1])
        torch.testing.assert_close(stepped(layer, now), (2 * before[0], 2 * before[1]))
        handle.remove()
        assert torch.equal(stepped(layer, now)[1], before[1])


def test_a_builder_with_a_parameter_of_its_own() -> None:
    class Scaled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.scale = inner, nn.Parameter(torch.tensor(2.0))

        def forward(self, *args: Tensor) -> Tensor:
            kernel: Tensor = self.inner(*args)
            return self.scale * kernel

    layer, now = DelayLinear(4, 3, 6), torch.randn(2, 4)
    layer.DCK = Scaled(layer.DCK)
    for name in ("weight", "P", "SIG"):
        layer.get_parameter(name).requires_grad_(False)
    output, state = stepped(layer, now)
    (output.sum() + state.sum()).backward()
    assert layer.DCK.scale.grad is not None
    with torch.no_grad():
        layer.DCK.scale.fill_(4)
        torch.testing.assert_close(stepped(layer, now)[1], 2 * state.detach())


@every_layer
def test_tangents_of_the_parameters_are_kept(kind: str) -> None:
    layer, now = LAYERS[kind]().double(), torch.randn(2, 4, dtype=torch.float64)
    with torch.no_grad():
        state = stepped(layer, now)[1]
        with forward_ad.dual_level():
            P = forward_ad.make_dual(layer.P.detach(), torch.ones_like(layer.P))

            class Stepped(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.layer = layer

                def forward(self) -> Tensor:
                    return stepped(self.layer, now)[1]

            moved = torch.func.functional_call(Stepped(), {"layer.P": P}, ())
            tangent = forward_ad.unpack_dual(moved).tangent
    step = 1e-6
    with torch.no_grad():
        layer.P += step
        assert tangent is not None
        torch.testing.assert_close(
            (stepped(layer, now)[1] - state) / step, tangent, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(("name", "value"), [("stride", (2, 1)), ("padding", ((0, 0), (4, 0)))])
def test_settings_of_a_convolution_count_at_once(name: str, value: Any) -> None:
    layer, x = DelayConv1d(2, 3, 3, 4), torch.randn(1, 2, 9)
    with torch.no_grad():
        layer.step(x, layer.initial_state(1, 9))
        setattr(layer, name, value)
        new = copy.deepcopy(layer)
        state = layer.initial_state(1, 9)
        for got, want in zip(layer.step(x, state), new.step(x, state), strict=True):
            assert torch.equal(got, want)


# Layers that are made without memory, and copies


def test_a_delay_that_was_made_on_meta_passes_its_values_on() -> None:
    trained = Delay(4, 6)
    x = torch.randn(9, 2, 4)
    for assign in (False, True):
        empty = Delay(4, 6, device="meta")
        new = empty if assign else empty.to_empty(device="cpu")
        if not assign:
            new.weight.fill_(float("nan"))
        new.load_state_dict(trained.state_dict(), assign=assign)
        assert torch.equal(new.weight, trained.weight)
        assert torch.equal(new(x), trained(x))
    drawn = Delay(4, 6, device="meta").to_empty(device="cpu")
    drawn.weight.fill_(float("nan"))
    drawn.reset_parameters()
    assert torch.equal(drawn.weight, trained.weight)


def test_a_mask_on_meta_has_a_text() -> None:
    mask = torch.ones(4, 3, dtype=torch.bool)
    assert "mask=12 of 12" in repr(DelayLinear(3, 4, 5, mask=mask))
    assert "mask=some of 12" in repr(DelayLinear(3, 4, 5, mask=mask, device="meta"))


def test_new_parameters_keep_to_the_mask() -> None:
    mask = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    layer = DelayLinear(3, 4, 5, mask=mask)
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert torch.equal(layer.weight.squeeze(-1) != 0, mask)
    assert not torch.equal(layer.weight, before)


def test_starting_delays_that_were_computed_can_be_copied() -> None:
    delays = torch.ones(4, requires_grad=True) * 2
    for layer in (Delay(4, 6, delay=delays), DelayLinear(4, 3, 6, init_delays=delays.view(4, 1))):
        other = copy.deepcopy(layer)
        other.reset_parameters()
        torch.testing.assert_close(other.delays(), torch.full_like(other.delays(), 2.0))


def test_a_frozen_layer_hands_out_a_copy_of_its_kernel() -> None:
    layer, x = DCLS.freeze(DelayLinear(4, 3, 6, method="direct")), torch.randn(9, 2, 4)
    with torch.no_grad():
        want = layer(x)
        kernel = layer.kernel()
        assert torch.equal(copy.deepcopy(kernel), kernel)
        kernel.mul_(10)
        assert torch.equal(layer(x), want)
