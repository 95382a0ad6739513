"""Bad input to the modules: errors that name the argument, what it got and what it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import LAYERS, TRANSPOSED, Layer, layer_id
from support import VERSIONS

import DCLS.construct.modules as modules
from DCLS.construct.modules import Dcls2d, DclsTranspose2d

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)

BAD_INTEGERS = [
    ({"in_channels": -1}, ValueError, "in_channels must be a non-negative int, got -1"),
    ({"in_channels": 2.0}, TypeError, "in_channels must be a non-negative int, got 2.0"),
    ({"in_channels": True}, TypeError, "in_channels must be a non-negative int, got the bool"),
    ({"in_channels": 3, "groups": 2}, ValueError, "in_channels must be divisible by groups=2"),
    ({"out_channels": -4}, ValueError, "out_channels must be a non-negative int, got -4"),
    ({"out_channels": "4"}, TypeError, "out_channels must be a non-negative int, got '4'"),
    ({"out_channels": 5, "groups": 2}, ValueError, "out_channels must be divisible by groups=2"),
    ({"kernel_count": 0}, ValueError, "kernel_count must be a positive int, got 0"),
    ({"kernel_count": (3, 3)}, TypeError, r"kernel_count must be a positive int, got \(3, 3\)"),
    ({"groups": 0}, ValueError, "groups must be a positive int, got 0"),
    ({"groups": -2}, ValueError, "groups must be a positive int, got -2"),
    ({"groups": None}, TypeError, "groups must be a positive int, got None"),
]
BAD_CHOICES = [
    ({"bias": "zeros"}, TypeError, "bias must be a bool, got 'zeros'"),
    ({"bias": 2}, TypeError, "bias must be a bool, got 2"),
    ({"bias": torch.tensor(True)}, TypeError, "bias must be a bool, got tensor"),
    (
        {"version": "Gauss"},
        ValueError,
        "version must be one of .*spline, got .Gauss.",
    ),
    ({"version": 1}, TypeError, "version must be a str out of .*spline, got int"),
    ({"padding_mode": "same"}, ValueError, "padding_mode must be one of zeros.*, got 'same'"),
    ({"padding_mode": None}, TypeError, "padding_mode must be a str out of zeros.*, got NoneType"),
    ({"dtype": torch.int32}, TypeError, "dtype must be None or one of float32.* got torch.int32"),
    ({"dtype": "float32"}, TypeError, "dtype must be None or one of float32.* got 'float32'"),
]


@layers
@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    BAD_INTEGERS + BAD_CHOICES,
    ids=[str(wrong) for wrong, *_ in BAD_INTEGERS + BAD_CHOICES],
)
def test_bad_arguments(layer: Layer, wrong: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        layer.make(**wrong)


SIZES = [(layer, name) for layer in LAYERS for name in ("stride", "padding", "dilated_kernel_size")]
SIZES += [(layer, "output_padding") for layer in TRANSPOSED]


@pytest.mark.parametrize(("layer", "name"), SIZES, ids=[f"{layer_id(a)}-{b}" for a, b in SIZES])
def test_bad_sizes(layer: Layer, name: str) -> None:
    count = len(layer.size) if name == "dilated_kernel_size" else layer.ndim
    minimum = 0 if "padding" in name else 1
    too_many = count + 1 + (name == "padding" and count == 1)  # two are the sides of one axis
    for wrong, error in [
        (minimum - 1, ValueError),
        ((1,) * (count - 1) + (minimum - 1,), ValueError),
        ((1,) * too_many, ValueError),
        ((), ValueError),
        (1.5, TypeError),
        ((1.5,) * count, TypeError),
        (None, TypeError),
        (True, TypeError),
        ("1", (TypeError, ValueError)),
        (b"1", TypeError),
        (torch.ones(count), TypeError),
    ]:
        with pytest.raises(error, match=rf"{name}(\[\d\])? must be"):
            layer.make(**{name: wrong})


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.dense], ids=layer_id)
def test_bad_dense_sizes(layer: Layer) -> None:
    for wrong, error in [(0, ValueError), ((1,) * 3, ValueError), ((), ValueError),
                         (None, TypeError), (2.0, TypeError)]:  # fmt: skip
        with pytest.raises(error, match="dense_kernel_size must be"):
            layer.make(dense_kernel_size=wrong)


def test_sizes_may_be_any_sequence_of_ints() -> None:
    numpy = pytest.importorskip("numpy")
    for size in ([3, 5], torch.Size([3, 5]), numpy.array([3, 5]), iter((3, 5))):
        assert Dcls2d(1, 1, 1, dilated_kernel_size=size).dilated_kernel_size == (3, 5)
    module = Dcls2d(numpy.int64(2), 2, numpy.int32(1), stride=numpy.int64(2))
    assert module.stride == (2, 2)
    assert type(module.in_channels) is int


def test_a_flag_may_be_numpys_or_none() -> None:
    numpy = pytest.importorskip("numpy")
    for value in (0, None, numpy.bool_(False), numpy.array(False)):
        assert Dcls2d(1, 1, 1, bias=value).bias is None
        assert Dcls2d(1, 1, 1, use_implicit_gemm=value).use_implicit_gemm is False
    for value in (1, numpy.bool_(True)):
        assert Dcls2d(1, 1, 1, bias=value).bias is not None
    with pytest.raises(TypeError, match="bias must be a bool"):
        Dcls2d(1, 1, 1, bias=numpy.array([True]))


@layers
def test_bad_padding_names(layer: Layer) -> None:
    if layer.transposed:
        with pytest.raises(TypeError, match="padding must be an int or a sequence"):
            layer.make(padding="same")
        with pytest.raises(ValueError, match="padding_mode must be one of zeros, got 'reflect'"):
            layer.make(padding_mode="reflect")
        return
    with pytest.raises(ValueError, match=r"padding must be 'same', 'valid'.* got 'full'"):
        layer.make(padding="full")
    with pytest.raises(ValueError, match=r"padding='same' takes a stride of 1 only, got stride="):
        layer.make(padding="same", stride=2)
    assert layer.make(padding="valid", stride=2).padding == "valid"


@pytest.mark.parametrize(
    ("name", "wrong", "error"),
    [("use_implicit_gemm", "yes", TypeError), ("use_implicit_gemm", 2, TypeError)],
)
def test_bad_arguments_of_dcls2d(name: str, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} must be"):
        Dcls2d(1, 1, 1, **{name: wrong})


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(2, ValueError), (-1, ValueError), (0.0, TypeError), (True, TypeError), (None, TypeError)],
)
def test_bad_flat_dim(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="flat_dim must be"):
        modules.Dcls2dK1d(1, 1, 1, flat_dim=wrong)


def base(**more: Any) -> modules._DclsNd:
    """Builds the base class from good arguments but for ``more``."""
    arguments: dict[str, Any] = {
        "in_channels": 1, "out_channels": 1, "kernel_count": 1, "stride": (1, 1), "padding": (0, 0),
        "dilated_kernel_size": (3, 3), "transposed": False, "output_padding": (0, 0), "groups": 1,
        "bias": True, "padding_mode": "zeros", "version": "gauss",
    }  # fmt: skip
    return modules._DclsNd(**{**arguments, **more})


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"stride": 1}, TypeError, "stride must be a sequence of 1 to 3 ints, got 1"),
        ({"stride": (1,) * 4}, ValueError, "stride must be a sequence of 1 to 3 ints"),
        ({"dilated_kernel_size": 3}, TypeError, "dilated_kernel_size must be a sequence of 1 to 3"),
        ({"padding": (0,)}, ValueError, r"padding must be .* of 2 ints, got \(0,\)"),
        ({"output_padding": (0,)}, ValueError, r"output_padding must be .* of 2 ints"),
        ({"transposed": "no"}, TypeError, "transposed must be a bool, got 'no'"),
        ({"kernel_size": (3,)}, ValueError, r"kernel_size must be .* of 2 ints, got \(3,\)"),
        (
            {"padding": "same", "dilated_kernel_size": (3,)},
            ValueError,
            r"kernel_size must have one number for each of the 2 axes.* got \(3,\)",
        ),
    ],
)
def test_bad_arguments_of_the_base_class(wrong: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        base(**wrong)


@pytest.mark.parametrize("name", [n for n in modules.__all__ if n.startswith("Construct")])
def test_bad_arguments_of_kernel_builders(name: str) -> None:
    learnable, dense = int(name[-2]), int(name[15]) - int(name[-2])
    good: dict[str, Any] = {
        "out_channels": 4, "in_channels": 2, "groups": 2, "kernel_count": 3,
        "dilated_kernel_size": (5,) * learnable, "version": "gauss",
    }  # fmt: skip
    if dense:
        good["dense_kernel_size"] = (2,) * dense
    builder = getattr(modules, name)(**good)
    wrongs: dict[str, list[Any]] = {
        "out_channels": [-1, 3, 1.0], "in_channels": [-1, 3, None], "groups": [0, 3, "2"],
        "kernel_count": [0, 2.5], "dilated_kernel_size": [0, (5,) * 4, None, "5"],
        "version": ["v2", None], "dense_kernel_size": [0, (2,) * 4, None],
    }  # fmt: skip
    for argument in good:
        for wrong in wrongs[argument]:
            with pytest.raises((ValueError, TypeError), match=f"{argument}.*(must be|, got)"):
                getattr(modules, name)(**{**good, argument: wrong})
    lead = (4, 1, *(2,) * dense, 3)
    W, P = torch.randn(lead), torch.randn(learnable, *lead)
    assert builder(W, P, P).shape == (*lead[:-1], *(5,) * learnable)
    for wrong_P in (P[0], P[:1].expand(4, *lead), P[..., :2], P[:, None]):
        with pytest.raises(ValueError, match=r"P must have shape|P and SIG must have shapes"):
            builder(W, wrong_P, P)
        with pytest.raises(ValueError, match=r"SIG must have shape|P and SIG must have shapes"):
            builder(W, P, wrong_P)
    with pytest.raises(TypeError, match="weight must be a Tensor, got list"):
        builder([1.0], P, P)
    with pytest.raises(TypeError, match="P must be a Tensor, got NoneType"):
        builder(W, None, P)
    with pytest.raises(TypeError, match="SIG must be a Tensor or None, got float"):
        builder(W, P, 0.5)
    with pytest.raises(ValueError, match="SIG"):
        builder(W, P)
    with pytest.raises((ValueError, TypeError), match=r"dtype|float"):
        builder(W, P.double(), P.double())
    with pytest.raises((ValueError, TypeError), match="weight"):
        builder(W.int(), P, P)


@pytest.mark.parametrize("layer", TRANSPOSED, ids=layer_id)
def test_bad_output_sizes(layer: Layer) -> None:
    module = layer.make(stride=2)
    x = layer.input(module, 2)
    good = list(module(x).shape[2:])
    for wrong, text in [
        ([n - 1 for n in good], r"output_size must be from .* to .*, got"),
        ([n + 2 for n in good], r"output_size must be from .* to .*, got"),
        ([*good, 1], "output_size must have"),
        ([], "output_size must have"),
    ]:
        with pytest.raises(ValueError, match=text):
            module(x, output_size=wrong)
    with pytest.raises(ValueError, match="input must have"):
        module(x[None, None], output_size=good)


def test_wrong_inputs_are_refused() -> None:
    for module in (Dcls2d(2, 2, 1, dilated_kernel_size=3), DclsTranspose2d(2, 2, 1)):
        for wrong in (torch.randn(8), torch.randn(1, 3, 8, 8), torch.randn(1, 2, 8, 8).double()):
            with pytest.raises(RuntimeError):
                module(wrong)


@layers
def test_a_diverged_position_gives_nan_in_its_own_row(layer: Layer) -> None:
    for version in VERSIONS:
        for bad in (torch.nan, torch.inf, -torch.inf):
            module = layer.make(version=version)
            with torch.no_grad():
                module.P[:, 0, 0] = bad
            kernel = module.DCK(module.weight, module.P, module.SIG)
            assert kernel[0, 0].isnan().all()
            assert kernel[1:].isfinite().all()
    with torch.no_grad():
        module.P.fill_(1e30)
    assert module(layer.input(module, 1)).isfinite().all()
