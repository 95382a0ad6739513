"""What tools read off a layer: the attributes of a convolution, and ``vars(layer)``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from layers import LAYERS, Layer, layer_id

import DCLS.im2col as im2col
from DCLS.construct.modules import ConstructKernel1d, Dcls1d, Dcls2d, Dcls2dK1d, _DclsNd

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)

#: What ``vars`` of every layer of 0.1.1 holds beside what torch's ``Module`` does, but for the
#: padding in torch's own form, which follows from ``padding`` and the size when it is asked for.
OF_0_1_1 = {
    "dilated_kernel_size", "groups", "in_channels", "kernel_count", "out_channels",
    "output_padding", "padding", "padding_mode", "stride", "transposed", "version",
}  # fmt: skip
#: The same of a builder, without its caches ``IDX`` and ``lim``.
OF_DCK = {"dilated_kernel_size", "groups", "in_channels", "kernel_count", "out_channels", "version"}


@layers
def test_kernel_size_and_dilation_are_those_of_the_plain_layer(layer: Layer) -> None:
    module = layer.make()
    plain = module.to_conv()
    assert module.kernel_size == plain.kernel_size == layer.kernel_size
    assert module.dilation == plain.dilation == (1,) * layer.ndim
    assert pickle.loads(pickle.dumps(module)).kernel_size == layer.kernel_size


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_of_im2col_layers(ndim: int) -> None:
    module = getattr(im2col, f"Dcls{ndim}d")(2, 2, 3, dilated_kernel_size=5)
    assert module.kernel_size == (5,) * ndim
    assert module.dilation == (1,) * ndim
    module.dilated_kernel_size = (7,) * ndim
    assert module.kernel_size == (7,) * ndim
    assert "{method}".format(**vars(module)) == "auto"
    assert vars(module)["version"] == "gauss"


class Own(Dcls1d):
    """Has a ``kernel_size`` of its own, as it could when the layers had none."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__(2, 2, 3, dilated_kernel_size=kernel_size)
        self.kernel_size = kernel_size  # type: ignore[assignment]


def test_a_subclass_may_store_its_own() -> None:
    module = Own(9)
    assert module.kernel_size == copy.deepcopy(module).kernel_size == 9
    assert module.dilation == (1,)


def test_of_the_base_class() -> None:
    flat = _DclsNd(
        2, 2, 3, (1, 1), (0, 0), (5,), False, (0, 0), 1, True, "zeros", "v1",
        kernel_size=(1, np.int64(5)),
    )  # fmt: skip
    assert flat.kernel_size == (1, 5)
    assert type(flat.kernel_size[1]) is int


@layers
def test_vars_hold_what_those_of_0_1_1_hold(layer: Layer) -> None:
    module = layer.make(version="v1")
    assert vars(module).keys() >= OF_0_1_1
    assert vars(module.DCK).keys() >= OF_DCK
    assert "{version}, {method}".format(**vars(module)) == "v1, auto"
    module.version = "max"
    for part in (module, module.DCK, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert vars(part)["version"] == part.version == "max"
    if not layer.transposed:
        module.method = "conv"
        assert vars(module)["method"] == "conv"
    if layer.dense:
        assert vars(module)["dense_kernel_size"] == layer.dense
    if layer.name == "Dcls2dK1d":
        assert vars(module)["flat_dim"] == layer.more["flat_dim"]


def test_vars_of_dcls2d_hold_the_switch_of_0_1_1() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    for method, switch in (("conv", False), ("direct", True), ("conv", False), ("auto", True)):
        module.method = method  # type: ignore[assignment]
        assert vars(module)["use_implicit_gemm"] is module.use_implicit_gemm is switch
    module.use_implicit_gemm = False
    loaded = pickle.loads(pickle.dumps(module))
    assert vars(loaded)["use_implicit_gemm"] is loaded.use_implicit_gemm is False
    assert loaded.method == "conv"


class Described(Dcls2d):
    """The idiom of 0.1.1."""

    def extra_repr(self) -> str:
        return "v={version}, s={stride}, m={method}, k={dilated_kernel_size}".format(
            **self.__dict__
        )


def test_the_repr_idiom_of_0_1_1() -> None:
    module = Described(2, 2, 3, dilated_kernel_size=5)
    module.version = "v0"
    assert "v=v0, s=(1, 1), m=auto, k=(5, 5)" in repr(module)


@layers
def test_a_whole_float_is_a_size(layer: Layer) -> None:
    for one in (float, np.float32, np.float64):
        module = layer.make(dilated_kernel_size=tuple(one(size) for size in layer.size))
        assert module.dilated_kernel_size == module.DCK.dilated_kernel_size == layer.size
        assert {type(size) for size in module.dilated_kernel_size} == {int}
        assert module(layer.input(module, 1)).shape == layer.make()(layer.input(module, 1)).shape
        assert layer.make(dilated_kernel_size=one(5)).dilated_kernel_size == (5,) * len(layer.size)


def test_other_floats_are_refused() -> None:
    for make in (
        lambda size: Dcls1d(1, 1, 1, dilated_kernel_size=size),
        lambda size: Dcls2dK1d(1, 1, 1, dilated_kernel_size=size),
        lambda size: im2col.Dcls2d(1, 1, 1, dilated_kernel_size=size),
        lambda size: ConstructKernel1d(1, 1, 1, 1, size, "v1"),
    ):
        for wrong in (25.5, float("nan"), float("inf"), np.float32("-inf"), -25.0, 0.0, 1e30):
            for given in (wrong, [wrong]):
                with pytest.raises((TypeError, ValueError), match="dilated_kernel_size"):
                    make(given)
    more: Any = {"in_channels": 2.0}, {"stride": 1.0}, {"padding": 1.0}, {"kernel_count": 1.0}
    for wrong in more:
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be"):
            Dcls1d(**{"in_channels": 1, "out_channels": 2, "kernel_count": 1, **wrong})


@pytest.mark.parametrize("name", ["stride", "padding", "in_channels", "groups", "kernel_count"])
def test_what_no_convolution_takes_is_refused_at_once(name: str) -> None:
    arguments: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "kernel_count": 1}
    for wrong in (2**31, 2**63, 2**70, 10**5000):
        with pytest.raises(ValueError, match=f"{name} must be at most"):
            Dcls2d(**{**arguments, name: wrong})
    with pytest.raises(ValueError, match="dilated_kernel_size must be at most 16777216"):
        Dcls2d(**arguments, dilated_kernel_size=2**63)


def test_compiled_layers_read_the_version_that_decides() -> None:
    torch.compiler.reset()
    module = Dcls1d(2, 2, 3, dilated_kernel_size=5, version="max")
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.randn(1, 2, 9)
    for version in ("max", "gauss"):
        module.DCK.version = version  # type: ignore[attr-defined]
        assert torch.allclose(compiled(x), module(x), atol=1e-6)
