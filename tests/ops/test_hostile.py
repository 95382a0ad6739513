"""Hostile arguments: each works, or an error names the argument."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import DCLS
from DCLS import functional
from DCLS.construct import modules

HOSTILE: list[Any] = [
    None, "", b"1", "v1", "same", True, math.nan, math.inf, -1, 0, 2**40, 2**63, 2**70, -(2**70),
    10**5000, 2**2000, 1.5, 2.0, Fraction(5, 2), Fraction(2), np.int64(2), np.float32(2),
    np.float64("nan"), np.array(2), np.array([2.5]), torch.tensor(2), torch.tensor(2.0),
    torch.tensor([]), torch.ones(2, 2), [], [[2]], [None], ["a"], [2**70], (1,) * 9, {}, set(),
    object(), 1j, int, torch.float32,
]  # fmt: skip

_X, _W, _K = torch.ones(1, 2, 9), torch.ones(2, 2, 3), torch.ones(2, 2, 5)
_P, _ROWS, _BIAS = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 3), torch.ones(2)
_GRID: dict[str, Any] = {"dilated_kernel_size": 5, "version": "gauss", "sigma_min": None}
_SAMPLED = {**_GRID, "SIG": _ROWS, "P": _ROWS, "stride": 1, "padding": 0, "input": _X}
_LAYER: dict[str, Any] = {
    "in_channels": 2, "out_channels": 2, "kernel_count": 3, "stride": 1, "padding": 0,
    "dilated_kernel_size": 5, "groups": 1, "bias": True, "padding_mode": "zeros",
    "version": "gauss", "device": None, "dtype": None,
}  # fmt: skip
_MODEL = torch.nn.Sequential(DCLS.Dcls1d(1, 1, 1, dilated_kernel_size=3))


def _run(kind: Any, ndim: int) -> Callable[..., Any]:
    """Builds a layer and calls it, so that no wrong value is found out only then."""

    def run(**arguments: Any) -> None:
        module = kind(**arguments)
        # Torch has no convolution without output channels, and no transposed one without inputs.
        some = module.out_channels and (module.in_channels or not module.transposed)
        if some and module.in_channels < 9 and module.weight.device.type == "cpu":
            module(torch.ones(1, module.in_channels, *(9,) * ndim).to(module.weight))

    return run


GOOD: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "construct_kernel": (
        functional.construct_kernel,
        {"weight": _W, "P": _P, "SIG": _P, "return_support": False, **_GRID},
    ),
    "construct_support": (functional.construct_support, {"P": _P, "SIG": _P, **_GRID}),
    "direct_conv": (
        functional.direct_conv,
        {
            "input": _X, "kernel": _K, "bias": _BIAS, "stride": 1, "padding": 0, "dilation": 1,
            "groups": 1, "support": _K > 0,
        },
    ),
    "im2col": (functional.im2col, _SAMPLED),
    "im2col_conv": (
        functional.im2col_conv,
        {**_SAMPLED, "weight": _W, "bias": _BIAS, "groups": 1, "workspace": None},
    ),
    "fold": (DCLS.fold, {"model": _MODEL, "inplace": False}),
}  # fmt: skip
for _name, _ndim, _more in (
    ("Dcls1d", 1, {"method": "auto"}),
    ("Dcls2d", 2, {"method": "auto", "use_implicit_gemm": True}),
    ("Dcls3d", 3, {"method": "auto"}),
    ("Dcls2dK1d", 2, {"method": "auto", "flat_dim": 0}),
    ("Dcls2_1d", 2, {"method": "auto", "dense_kernel_size": 2}),
    ("Dcls3_1d", 3, {"method": "auto", "dense_kernel_size": 2}),
    ("Dcls3_2d", 3, {"method": "auto", "dense_kernel_size": 2}),
    ("DclsTranspose1d", 1, {"output_padding": 0}),
    ("DclsTranspose2d", 2, {"output_padding": 0}),
    ("DclsTranspose3d", 3, {"output_padding": 0}),
):
    GOOD[_name] = _run(getattr(DCLS, _name), _ndim), {**_LAYER, **_more}
for _ndim in (1, 2, 3):
    _kind = getattr(DCLS.im2col, f"Dcls{_ndim}d")
    GOOD[f"im2col.Dcls{_ndim}d"] = _run(_kind, _ndim), {**_LAYER, "method": "auto"}
for _name in (name for name in modules.__all__ if name.startswith("Construct")):
    _sizes = {"dense_kernel_size": 2} if "_" in _name else {}
    _names = ("in_channels", "out_channels", "groups", "kernel_count", "version")
    _arguments = {name: _LAYER[name] for name in (*_names, "dilated_kernel_size")}
    GOOD[_name] = getattr(modules, _name), {**_arguments, **_sizes}


def _names(function: Callable[..., Any], good: Any, argument: str, value: object) -> bool:
    """Whether the call works, or its error names the argument; other errors are passed on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**{**good, argument: value})
    except (RuntimeError, TypeError, ValueError) as error:
        return argument in str(error)
    return True


@pytest.mark.parametrize("name", GOOD)
def test_each_value_works_or_the_error_names_the_argument(name: str) -> None:
    function, good = GOOD[name]
    function(**good)
    for argument in good:
        for value in HOSTILE:
            assert _names(function, good, argument, value), (argument, type(value))


def test_a_mask_of_another_length() -> None:
    ops, grid = torch.ops.dcls, ([5], "v1", 1.0)
    conv, sampled = ([1], [0], [1], 1), ([5], [1], [0, 0], "v1", 1.0)
    layer = ([5], [0], "v1", 1.0, [5], [1], [0], 1)
    columns, saved = torch.ones(1, 2, 3, 5), torch.ones(0, dtype=torch.uint8)
    out = torch.ones(1, 2, 5)
    calls: list[tuple[Any, list[Any]]] = [
        (ops.construct_kernel_backward, [_K, _W, _P, None, *grid]),
        (ops.direct_conv_backward, [out, _X, _K, None, *conv]),
        (ops.im2col_backward, [columns, _X, _ROWS, None, *sampled]),
        (ops.im2col_conv_backward, [out, _X, _W, _ROWS, None, *sampled, 1, 1 << 20]),
        (ops.layer_backward, [out, _X, _W, _P, None, saved, *layer, [True, True]]),
    ]
    for operator, args in calls:
        for mask in ([], [True], [True] * 7):
            for device in ("cpu", "meta"):
                moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
                with pytest.raises(ValueError, match=r"output_mask must have \d entries, got"):
                    operator(*moved, mask)
    with pytest.raises(ValueError, match="saves must have 2 entries, got 1"):
        ops.layer(_X, _W, _P, None, None, *layer, [True])
