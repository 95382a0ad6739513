"""Tensors whose memory does not hold their elements: refused by name, or computed rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import OPERATORS, arguments, places
from torch import Tensor
from torch.func import grad

from DCLS import Dcls2d
from DCLS import im2col as im2col_package
from DCLS._checks import PADDING_MODES
from DCLS.nn.transposed import DclsTranspose2d


def freed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("name", OPERATORS)
def test_each_argument_must_have_memory_and_be_dense(name: str) -> None:
    args = arguments(name, with_support=True)
    operator = getattr(torch.ops.dcls, name)
    for place in places(args):
        argument = operator.default._schema.arguments[place].name
        given = list(args)
        given[place] = freed(args[place])
        with pytest.raises(ValueError, match=f"^{argument} must have memory"):
            operator(*given)
        given[place] = args[place].to_sparse()
        with pytest.raises(TypeError, match=f"^{argument} must be a dense tensor"):
            operator(*given)
        # Nothing to compute needs no memory.
        given[place] = args[place].clone()
        operator(*given)


def make(method: str) -> Any:
    torch.manual_seed(0)
    options = {"dilated_kernel_size": (5, 5), "padding": 2, "groups": 2}
    if method == "im2col":
        return im2col_package.modules.Dcls2d(4, 4, 3, **options)
    return Dcls2d(4, 4, 3, method=method, version="gauss", **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("parameter", ["weight", "P", "SIG", "bias"])
@pytest.mark.parametrize("method", ["direct", "im2col"])
def test_a_freed_parameter_is_named(method: str, parameter: str, training: bool) -> None:
    """As FSDP frees them. A freed bias counted as none, without a word."""
    layer = make(method)
    if getattr(layer, parameter) is None:
        pytest.skip("this version has none")
    getattr(layer, parameter).data.untyped_storage().resize_(0)
    with torch.set_grad_enabled(training), pytest.raises(ValueError, match=f"^{parameter} must"):
        layer(torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("method", ["auto", "conv", "direct", "im2col", "transposed"])
def test_a_freed_input_is_named(method: str, padding_mode: str, batched: bool) -> None:
    """Torch's padding by other modes ends the process there, for a permuted input."""
    if method == "transposed":
        layer: Any = DclsTranspose2d(4, 4, 3, dilated_kernel_size=5)
    else:
        layer = make(method)
        layer.padding_mode = padding_mode
    x = torch.randn(2, 8, 8, 4).movedim(-1, 1)
    x = x if batched else x[0]
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"^input must have memory"):
        layer(x)


NOT_DENSE: dict[str, Callable[[Tensor], Tensor]] = {
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x[:, 0]), layout=torch.jagged),
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: x[0, 0].to_sparse_csr(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls these classes beta
@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("method", ["direct", "im2col"])
def test_an_input_that_is_not_dense_is_named(method: str, kind: str) -> None:
    x = NOT_DENSE[kind](torch.randn(2, 4, 8, 8))
    with pytest.raises(TypeError, match=r"^input must be a dense tensor"):
        make(method)(x)


@pytest.mark.parametrize("method", ["auto", "conv", "direct", "im2col"])
def test_a_layer_on_the_meta_device(method: str) -> None:
    """The direct way asked for autocast on a device that has none."""
    layer = make(method).to("meta")
    output = layer(torch.empty(2, 4, 8, 8, device="meta"))
    assert output.shape == (2, 4, 8, 8)
    assert output.is_meta


def dead_wrapper(x: Tensor) -> Tensor:
    kept = []
    grad(lambda t: (kept.append(t), t.sum())[1])(x)
    return kept[0]


ODD: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "left over of torch.func": (dead_wrapper, lambda x: x),
    "zeros without memory": (
        lambda x: torch._efficientzerotensor(x.shape),
        torch.zeros_like,
    ),
    "lazily negated": (torch._neg_view, torch.neg),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("method", ["auto", "direct", "im2col"])
def test_inputs_that_the_dispatcher_resolves(method: str, kind: str, training: bool) -> None:
    make_odd, plain = ODD[kind]
    layer, x = make(method), torch.randn(2, 4, 8, 8)
    with torch.set_grad_enabled(training):
        assert torch.equal(layer(make_odd(x)), layer(plain(x)))


def test_an_input_of_mkldnn() -> None:
    """``auto`` leaves it to torch's convolution, which takes it; the direct way names it."""
    x = torch.randn(2, 4, 8, 8)
    layer = make("auto")
    assert torch.allclose(layer(x.to_mkldnn()).to_dense(), layer(x), atol=1e-5)
    assert layer.explain(x.to_mkldnn()).method == "conv"
    for method in ("direct", "im2col"):
        with pytest.raises(TypeError, match=r"^input must be a dense tensor, .*mkldnn"):
            make(method)(x.to_mkldnn())
