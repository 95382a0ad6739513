"""``torch.fx``: layers and functions in symbolic traces."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import LAYERS, Layer, assert_close, layer_id
from torch import Tensor, fx, nn

import DCLS
from DCLS.functional import construct_kernel, construct_support, direct_conv, im2col, im2col_conv

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


def same(module: nn.Module, x: Tensor) -> fx.GraphModule:
    """Traces, and compares outputs and the gradients of input and parameters."""
    traced = fx.symbolic_trace(module)
    traced.graph.lint()
    assert traced.state_dict().keys() == module.state_dict().keys()
    results = []
    for one in (module, traced):
        leaf = x.clone().requires_grad_()
        output = one(leaf)
        wanted = [leaf, *(p for _, p in sorted(one.named_parameters()))]
        grads = torch.autograd.grad(output.square().sum(), wanted, allow_unused=True)
        results.append([output, *(g for g in grads if g is not None)])
    for want, got in zip(*results, strict=True):
        assert_close(got, want)
    return traced


@layers
def test_a_layer_is_traced(layer: Layer) -> None:
    torch.manual_seed(0)
    module = layer.make(dtype=torch.float64)
    x = layer.input(module, 2)
    traced = same(module, x)
    assert_close(traced(x[0]), module(x[0]))
    # Not of the layer alone: torch.fx cannot save annotations that are texts.
    saved = pickle.dumps(fx.symbolic_trace(nn.Sequential(module)))
    assert_close(pickle.loads(saved)(x), module(x))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("layer", [la for la in LAYERS if not la.transposed], ids=layer_id)
def test_each_method_and_padding(layer: Layer) -> None:
    torch.manual_seed(0)
    for method, padding, mode, version in (
        ("direct", "same", "zeros", "v0"),
        ("direct", 1, "circular", "v1"),
        ("conv", "same", "reflect", "max"),
        ("auto", "valid", "zeros", "spline"),
    ):
        module = layer.make(
            method=method, padding=padding, padding_mode=mode, groups=2, version=version,
            dtype=torch.float64,
        )  # fmt: skip
        traced = same(nn.Sequential(module, nn.ReLU()), layer.input(module, 1))
        targets = [node.target for node in traced.graph.nodes]
        assert (direct_conv in targets) == (method == "direct")


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("version", ["v0", "gauss"])
def test_im2col_layers_are_traced(ndim: int, version: Any) -> None:
    torch.manual_seed(0)
    kind = getattr(DCLS.im2col, f"Dcls{ndim}d")
    module = kind(2, 4, 3, dilated_kernel_size=3, padding=1, version=version, dtype=torch.float64)
    same(nn.Sequential(module, nn.ReLU()), torch.randn(2, 2, *(6,) * ndim, dtype=torch.float64))


class Causal(DCLS.Dcls1d):
    """Pads on one side: its own ``forward`` is traced, too."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(F.pad(input, (4, 0)))


def test_subclasses_and_hooks_are_traced_once() -> None:
    torch.manual_seed(0)
    module = Causal(2, 2, 3, dilated_kernel_size=5, dtype=torch.float64)
    module.register_forward_hook(lambda _, __, output: output + 1)
    same(nn.Sequential(module), torch.randn(1, 2, 9, dtype=torch.float64))


def test_as_a_leaf() -> None:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            ours = type(m).__module__.startswith("DCLS")
            return ours or super().is_leaf_module(m, module_qualified_name)

    module = nn.Sequential(DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=5), nn.ReLU())
    graph = Tracer().trace(module)
    assert [n.op for n in graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(fx.GraphModule(module, graph)(x), module(x))


class Functions(nn.Module):
    """Calls each function, with arguments by place and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, 3, dtype=torch.float64))
        self.P = nn.Parameter(torch.randn(1, 2, 2, 3, dtype=torch.float64))
        self.rows = nn.Parameter(torch.randn(1, 2, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        options: Any = {"dilated_kernel_size": 5, "version": "v1"}
        kernel, support = construct_kernel(self.weight, P=self.P, return_support=True, **options)
        other = construct_support(self.P, **options)
        first = direct_conv(x, kernel, None, 1, "same", support=support)
        second = DCLS.functional.direct_conv(input=x, kernel=kernel, padding=2, support=other)
        third = im2col_conv(x, self.weight, None, self.rows, padding=2, **options)
        return first + second * third + im2col(x, self.rows, padding=2, **options).sum(2)


def test_functions_are_nodes() -> None:
    torch.manual_seed(0)
    traced = same(Functions(), torch.randn(2, 2, 9, dtype=torch.float64))
    targets = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    for function in (construct_kernel, construct_support, direct_conv, im2col, im2col_conv):
        assert function in targets


class Up(nn.Module):
    """Asks for a size that the input has."""

    def __init__(self) -> None:
        super().__init__()
        self.up = DCLS.DclsTranspose1d(2, 2, 3, stride=2, dilated_kernel_size=4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, output_size=[19]) + self.up(x, output_size=(1, 2, 19))[:, :1]


def test_an_output_size_is_traced() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 8, dtype=torch.float64)
    same(Up(), x)
    layer = Up().up
    traced = fx.symbolic_trace(layer)
    assert_close(traced(x, [19]), layer(x, [19]))
    assert_close(traced(x), layer(x))
    with pytest.raises(ValueError, match="output_size must be from"):
        traced(x, [30])
