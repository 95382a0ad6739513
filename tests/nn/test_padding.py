"""Padding whose two sides differ: pairs, and ``causal``, on all layers, however they convolve."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import FORWARD, TRANSPOSED, Layer, assert_close, layer_id
from torch import Tensor

import DCLS
from DCLS import im2col

IM2COL = {1: im2col.Dcls1d, 2: im2col.Dcls2d, 3: im2col.Dcls3d}


def causal_sides(layer: Layer) -> list[tuple[int, int]]:
    time = layer.more.get("flat_dim", layer.ndim - 1)
    sides = [((size - 1) // 2, size // 2) for size in layer.kernel_size]
    sides[time] = (layer.kernel_size[time] - 1, 0)
    return sides


def padded(x: Tensor, sides: Any, mode: str = "constant") -> Tensor:
    return F.pad(x, [zeros for pair in reversed(sides) for zeros in pair], mode)


def pairs(count: int) -> Any:
    return tuple([3, (0, 2), (1, 0)][(axis + 1) % 3] for axis in range(count))


def both_sides(padding: Any) -> list[Any]:
    return [side if isinstance(side, tuple) else (side, side) for side in padding]


@pytest.mark.parametrize("method", ["direct", "conv"])
@pytest.mark.parametrize("layer", FORWARD, ids=layer_id)
def test_a_layer_pads_its_input(layer: Layer, method: str) -> None:
    torch.manual_seed(0)
    for given in ("causal", pairs(layer.ndim)):
        module = layer.make(padding=given, method=method, stride=2, groups=2).double()
        plain = layer.make(method=method, stride=2, groups=2).double()
        plain.load_state_dict(module.state_dict())
        sides = causal_sides(layer) if given == "causal" else both_sides(given)
        for lead in ((2,), ()):
            x = layer.input(module, *lead).requires_grad_()
            want = plain(padded(x, sides))
            grad = torch.randn_like(want)
            wanted = torch.autograd.grad(want, (x, *plain.parameters()), grad)
            got = module(x)
            assert_close(got, want)
            found = torch.autograd.grad(got, (x, *module.parameters()), grad)
            for one, other in zip(found, wanted, strict=True):
                assert_close(one, other)
        assert module.explain(x).method == method
        for same in (DCLS.fold(module), module.to_conv(), copy.deepcopy(module),
                     pickle.loads(pickle.dumps(module))):  # fmt: skip
            assert_close(same(x), got)
        assert [type(m).__name__ for m in DCLS.fold(module)] == [
            f"ConstantPad{layer.ndim}d",
            f"Conv{layer.ndim}d",
        ]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_an_im2col_layer_pads_its_input(ndim: int) -> None:
    torch.manual_seed(0)
    size = (4, 3, 6)[:ndim]
    layer = Layer(f"Dcls{ndim}d", ndim, size)
    for given in ("causal", pairs(ndim)):
        make = IM2COL[ndim]
        module = make(4, 6, 3, dilated_kernel_size=size, padding=given, groups=2).double()
        plain = make(4, 6, 3, dilated_kernel_size=size, groups=2).double()
        plain.load_state_dict(module.state_dict())
        sides = causal_sides(layer) if given == "causal" else both_sides(given)
        x = layer.input(module, 2)
        want = plain(padded(x, sides))
        for same in (module, DCLS.fold(module)):
            assert_close(same(x), want)
        assert_close(module(x[0]), want[0])


@pytest.mark.parametrize("layer", FORWARD, ids=layer_id)
def test_causal_outputs_have_the_size_of_the_input_and_see_no_later_one(layer: Layer) -> None:
    torch.manual_seed(0)
    module = layer.make(padding="causal").double()
    x = layer.input(module, 1).requires_grad_()
    y = module(x)
    assert y.shape[2:] == x.shape[2:]
    time = layer.more.get("flat_dim", layer.ndim - 1) + 2
    now = y.shape[time] // 2
    (grad,) = torch.autograd.grad(y.select(time, now).sum(), x)
    later = grad.narrow(time, now + 1, grad.shape[time] - now - 1)
    assert not later.any()
    assert grad.narrow(time, 0, now + 1).any()


def test_the_padding_follows_the_kernel_and_the_mode() -> None:
    module = DCLS.Dcls1d(2, 2, 1, dilated_kernel_size=5, padding="causal")
    assert "padding=causal" in repr(module)
    x = torch.randn(1, 2, 9)
    module.dilated_kernel_size = 8
    assert module(x).shape == x.shape
    module.stride = 2
    assert module(x).shape[-1] == 5
    module.stride = 1
    module.padding = (3, 1)
    assert module.padding == ((3, 1),)
    assert "padding=((3, 1),)" in repr(module)
    assert module(x).shape[-1] == 9 + 4 - 7
    module.padding = ((2, 2),)
    assert module.padding == (2,), "two equal sides are torch's own padding"
    for mode, names in (("replicate", ["ReplicationPad1d"]), ("circular", ["CircularPad1d"]),
                        ("reflect", ["ReflectionPad1d"])):  # fmt: skip
        module = DCLS.Dcls1d(
            2, 2, 1, dilated_kernel_size=5, padding=(4, 1), padding_mode=mode
        ).double()
        plain = DCLS.Dcls1d(2, 2, 1, dilated_kernel_size=5).double()
        plain.load_state_dict(module.state_dict())
        x = torch.randn(1, 2, 9, dtype=torch.float64)
        want = plain(padded(x, [(4, 1)], mode))
        assert_close(module(x), want)
        folded = DCLS.fold(module)
        assert_close(folded(x), want)
        assert [type(folded[0]).__name__] == names


def test_torch_compiles_and_traces_it() -> None:
    module = DCLS.Dcls2_1d(2, 3, 1, dilated_kernel_size=5, padding="causal")
    x = torch.randn(1, 2, 4, 9)
    want = module(x)
    assert torch.allclose(torch.fx.symbolic_trace(module)(x), want, atol=1e-6)
    assert torch.allclose(torch.export.export(module, (x,)).module()(x), want, atol=1e-6)


@pytest.mark.parametrize("layer", TRANSPOSED, ids=layer_id)
def test_transposed_layers_refuse_it(layer: Layer) -> None:
    uneven = ((1, 0), *[(1, 1)] * (layer.ndim - 1))
    for wrong in ("causal", uneven):
        with pytest.raises((TypeError, ValueError), match="padding"):
            layer.make(padding=wrong)
        module = layer.make()
        with pytest.raises(ValueError, match="padding must be equal on both sides for a transpose"):
            module.padding = wrong
        assert module.padding == (0,) * layer.ndim


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (((1, 0),), ValueError, r"an int or a pair \(before, behind\) for each of 2 axes"),
        (((1, 0), (1, 0), (1, 0)), ValueError, "for each of 2 axes"),
        (((1, 0, 0), 1), ValueError, r"padding\[0\] must be an int or a sequence of 2 ints"),
        ((1, (0, -1)), ValueError, r"padding\[1\]\[1\] must be a non-negative int, got -1"),
        ((1, (0, 1.5)), TypeError, r"padding\[1\]\[1\] must be a non-negative int"),
        ((1, "ab"), TypeError, r"padding\[1\] must be"),
        ((None, (1, 0)), TypeError, r"padding\[0\] must be"),
        ("Causal", ValueError, "padding must be 'same', 'valid', 'causal', an int or a sequence"),
    ],
)
def test_bad_padding(given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DCLS.Dcls2d(2, 2, 1, padding=given, dilated_kernel_size=3)


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_a_mode_that_shows_later_inputs_is_refused(mode: Any) -> None:
    with pytest.raises(ValueError, match="later inputs before the first"):
        DCLS.Dcls1d(2, 2, 1, padding="causal", padding_mode=mode, dilated_kernel_size=3)
    module = DCLS.Dcls1d(2, 2, 1, padding_mode=mode, dilated_kernel_size=3)
    with pytest.raises(ValueError, match="later inputs before the first"):
        module.padding = "causal"
    module = DCLS.Dcls1d(2, 2, 1, padding="causal", dilated_kernel_size=3)
    with pytest.raises(ValueError, match="later inputs before the first"):
        module.padding_mode = mode
