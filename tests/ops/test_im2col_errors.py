"""Wrong arguments of im2col: every message names the argument, what it got and what it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from im2col_problem import make_im2col

from DCLS.im2col.modules import Dcls1d, Dcls2d, Dcls3d

f32 = torch.float32


def problem(version="gauss"):
    return make_im2col(version, (9, 8), (5, 4), dtype=f32)


def rows(*shape, dtype=f32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


#: Changes of the problem's tensors, options, the exception and a part of its message.
BOTH = [
    ({"input": [1, 2]}, {}, TypeError, "input must be a Tensor, got list"),
    ({"input": rows(2, 4)}, {}, ValueError, "input must have shape (N, I, *spatial) with 1 to 3"),
    ({"input": rows(1, 1, 1, 1, 1, 1)}, {}, ValueError, "input must have shape"),
    ({"input": rows(2, 4, 9, 8, dtype=torch.int64)}, {}, TypeError, "input must have a dtype out"),
    ({"P": None}, {}, TypeError, "P must be a Tensor, got NoneType"),
    ({"P": rows(2, 4)}, {}, ValueError, "P must have shape (axes, in_channels, kernel_count)"),
    ({"P": rows(2, 5, 3)}, {}, ValueError, "here (2, 4, K), got (2, 5, 3)"),
    ({"P": rows(3, 4, 3)}, {}, ValueError, "here (2, 4, K), got (3, 4, 3)"),
    ({"P": rows(2, 4, 3, dtype=torch.float64)}, {}, TypeError, "P must have dtype torch.float32"),
    ({"P": rows(2, 4, 3, dtype=torch.int64)}, {}, TypeError, "got torch.int64"),
    ({"P": rows(2, 4, 3, device="meta")}, {}, ValueError, "P must be on the device of input"),
    ({"SIG": None}, {}, ValueError, "SIG must be given for version 'gauss', got None"),
    ({"SIG": 1.0}, {}, TypeError, "SIG must be a Tensor or None, got float"),
    ({"SIG": rows(2, 4, 2)}, {}, ValueError, "SIG must have shape and dtype of P"),
    ({}, {"version": "v1"}, ValueError, "SIG must be None for version 'v1'"),
    (
        {},
        {"version": "v2"},
        ValueError,
        "version must be one of v0, v1",
    ),
    ({}, {"version": 1}, TypeError, "version must be a str"),
    ({}, {"sigma_min": -1.0}, ValueError, "sigma_min must be finite and positive, got -1.0"),
    ({}, {"sigma_min": "x"}, TypeError, "sigma_min must be a float or None, got str"),
    ({}, {"dilated_kernel_size": (5,)}, ValueError, "dilated_kernel_size must be an int or have 2"),
    ({}, {"dilated_kernel_size": (5, 0)}, ValueError, "dilated_kernel_size must have entries"),
    ({}, {"dilated_kernel_size": 2.0}, TypeError, "dilated_kernel_size must be an int or a"),
    ({}, {"dilated_kernel_size": (5, True)}, TypeError, "dilated_kernel_size must hold ints"),
    ({}, {"dilated_kernel_size": (50, 4)}, ValueError, "must not exceed the padded input"),
    ({}, {"stride": 0}, ValueError, "stride must have entries between 1 and"),
    ({}, {"stride": (1, 2, 3)}, ValueError, "stride must be an int or have 2 entries"),
    ({}, {"stride": "1"}, TypeError, "stride must be an int or a sequence of ints, got '1'"),
    ({}, {"padding": -1}, ValueError, "padding must have entries between 0 and"),
    ({}, {"padding": 1.5}, TypeError, "padding must be an int or a sequence of ints, got 1.5"),
    ({}, {"padding": "full"}, ValueError, "padding must be 'same', 'valid', an int"),
    ({}, {"padding": "same", "stride": 2}, ValueError, "padding='same' takes a stride of 1 only"),
]
CONV = [
    ({"weight": 3}, {}, TypeError, "weight must be a Tensor, got int"),
    ({"weight": rows(6, 2)}, {}, ValueError, "weight must have shape (out_channels, in_channels"),
    ({"weight": rows(6, 2, 4)}, {}, ValueError, "here (O, 2, 3), got (6, 2, 4)"),
    ({"weight": rows(5, 2, 3)}, {}, ValueError, "out_channels that groups=2 divides, got 5"),
    ({"weight": rows(6, 2, 3, dtype=torch.float64)}, {}, TypeError, "weight must have the dtype"),
    ({"weight": rows(6, 2, 3, device="meta")}, {}, ValueError, "weight must be on the device"),
    ({"bias": [0]}, {}, TypeError, "bias must be a Tensor or None, got list"),
    ({"bias": rows(5)}, {}, ValueError, "bias must have shape (out_channels,) = (6,), got (5,)"),
    ({"bias": rows(6, dtype=torch.float64)}, {}, TypeError, "bias must have the dtype of input"),
    ({"bias": rows(6, device="meta")}, {}, ValueError, "bias must be on the device of input"),
    ({}, {"workspace": 0}, ValueError, "workspace must be a positive number of bytes, got 0"),
    ({}, {"workspace": 7}, ValueError, "workspace must be at least 24 bytes"),
    ({}, {"workspace": 1.5}, TypeError, "workspace must be an int or None, got 1.5"),
    ({}, {"workspace": True}, TypeError, "workspace must be an int"),
]
GROUPS = [
    (3, ValueError, "groups must be positive and divide the 4 channels of input, got 3"),
    (0, ValueError, "groups must be positive"),
    (-1, ValueError, "groups must be positive"),
    (1.0, TypeError, "groups must be an int, got 1.0"),
    (None, TypeError, "groups must be an int, got None"),
]


def fails(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value), caught.value


@pytest.mark.parametrize(("tensors", "options", "kind", "message"), BOTH, ids=lambda v: str(v)[:40])
def test_arguments_of_both(tensors, options, kind, message):
    wrong = replace(problem(), **tensors)
    fails(lambda: wrong.columns(**options), kind, message)
    fails(lambda: wrong.conv(**options), kind, message)


@pytest.mark.parametrize(("tensors", "options", "kind", "message"), CONV, ids=lambda v: str(v)[:40])
def test_arguments_of_the_convolution(tensors, options, kind, message):
    wrong = replace(problem(), **tensors)
    fails(lambda: wrong.conv(**options), kind, message)


@pytest.mark.parametrize(("groups", "kind", "message"), GROUPS)
def test_groups(groups, kind, message):
    fails(lambda: replace(problem(), groups=groups).conv(), kind, message)


def test_sixteen_bit_input_takes_its_dtype_or_float32_for_positions():
    low = problem().to(torch.bfloat16)
    fails(
        lambda: replace(low, P=low.P.double(), SIG=low.SIG.double()).columns(),
        TypeError,
        "P must have dtype torch.bfloat16 or torch.float32 for an input of torch.bfloat16",
    )
    fails(
        lambda: replace(low, P=low.P.float()).columns(),
        ValueError,
        "SIG must have shape and dtype of P",
    )


def test_operators_check_their_own_arguments():
    p = problem()
    spec = ([5, 4], [1, 1], [0] * 4, "gauss", 0.27)
    ops = torch.ops.dcls
    columns = ops.im2col(p.input, p.P, p.SIG, *spec)
    output = ops.im2col_conv(p.input, p.weight, p.bias, p.P, p.SIG, *spec, 2, 1000)
    for wrong in ([1, 1], [0] * 5):
        short = ([5, 4], [1, 1], wrong, "gauss", 0.27)
        fails(
            lambda s=short: ops.im2col(p.input, p.P, p.SIG, *s), ValueError, "padding must have 4"
        )
    mask = [True, True, True]
    for name, grad, operator, args in (
        ("grad_columns", columns, ops.im2col_backward, (p.input, p.P, p.SIG, *spec, mask)),
        (
            "grad_output",
            output,
            ops.im2col_conv_backward,
            (p.input, p.weight, p.P, p.SIG, *spec, 2, 1000, [True, *mask]),
        ),
    ):
        for wrong, kind, message in (
            (grad[..., :-1], ValueError, f"{name} must have shape"),
            (grad.double(), TypeError, f"{name} must have the dtype of input"),
            (grad.to("meta"), ValueError, f"{name} must be on the device of input"),
        ):
            fails(lambda w=wrong, o=operator, a=args: o(w, *a), kind, message)


@pytest.mark.parametrize("kind", [Dcls1d, Dcls2d, Dcls3d])
def test_modules(kind):
    ndim = int(kind.__name__[4])
    module = kind(4, 6, 3, dilated_kernel_size=5)
    fails(
        lambda: module(torch.zeros(4, *[5] * (ndim + 2))), ValueError, f"must have {ndim} spatial"
    )
    for shape in ((2, 3), (3,)):
        wrong = torch.zeros(*shape, *[5] * ndim)
        fails(
            lambda x=wrong: module(x), ValueError, "input must have 4 channels, got 3 in the shape"
        )
    fails(lambda: kind(4, 6, 0), ValueError, "kernel_count must be a positive int, got 0")
    fails(lambda: kind(4, 6, 3, groups=4), ValueError, "out_channels must be divisible by groups=4")
    fails(lambda: kind(4, 6, 3, padding=(1,) * 4), ValueError, "padding must be an int or a")
    fails(lambda: kind(4, 6, 3, version="v9"), ValueError, "version must be one of")
    fails(lambda: kind(4, 6, 3, method="direct"), ValueError, "method must be 'auto' for an im2col")
    module = kind(4, 6, 3, dilated_kernel_size=5, version="v1")
    module.version = "gauss"
    fails(lambda: module(torch.zeros(2, 4, *[5] * ndim)), ValueError, "SIG must be given")
