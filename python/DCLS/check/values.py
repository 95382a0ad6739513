"""The operators against the reference in float64: values and gradients, every dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS import _ops, functional, reference
from DCLS._checks import resolve_sigma_min
from DCLS._precision import allows_tf32
from DCLS._spec import DTYPES, SIGMA_VERSIONS, VERSIONS

#: Norm of an error, over that of the right result. What rounding explains is several times smaller.
TOLERANCES: Final = {
    torch.float64: 1e-12,
    torch.float32: 3e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}

#: The same of float32 where a convolution may round it to TF32, which has the bits of float16.
TF32_TOLERANCE: Final = TOLERANCES[torch.float16]

#: What is checked.
OPERATORS: Final = SimpleNamespace(
    construct_kernel=functional.construct_kernel,
    construct_support=functional.construct_support,
    direct_conv=functional.direct_conv,
    im2col=functional.im2col,
    im2col_conv=functional.im2col_conv,
    layer=_ops.layer,
)

#: What it is checked against. Its arguments come in lists, which mypy cannot follow.
_REFERENCE: Final[Any] = reference

_SIZES: Final = ((9,), (5, 7), (3, 4, 5))
_CONV: Final = (F.conv1d, F.conv2d, F.conv3d)


class Case(NamedTuple):
    """A function, and what computes the same in plain torch."""

    operator: str
    #: Version, axes and layout.
    what: str
    dtype: torch.dtype
    function: Callable[..., Tensor]
    oracle: Callable[..., Tensor]
    #: In float64. Gradients are wanted of all of them.
    inputs: Sequence[Tensor]
    channels_last: bool = False

    def allowed(self, device: torch.device) -> float:
        """Returns the largest error that rounding explains."""
        rounds = self.operator in ("direct_conv", "layer") and allows_tf32(device)
        if self.dtype == torch.float32 and rounds:
            return TF32_TOLERANCE
        return TOLERANCES[self.dtype]

    def error(self, device: torch.device) -> float:
        """Returns the largest relative error of the result and the gradients."""
        given = [tensor.to(device, self.dtype) for tensor in self.inputs]
        if self.channels_last:
            given[0] = given[0].to(memory_format=_last(given[0]))
        exact = [tensor.detach().to("cpu", torch.float64) for tensor in given]
        got = _with_gradients(self.function, given)
        expected = _with_gradients(self.oracle, exact)
        return max(_distance(*pair) for pair in zip(got, expected, strict=True))


def _last(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d


def _with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    draws = torch.Generator().manual_seed(1)
    cotangent = torch.randn(output.shape, generator=draws, dtype=torch.float64)
    # Of few bits, so that every dtype has the same numbers.
    cotangent = (cotangent * 8).round() / 8
    grads = torch.autograd.grad(output, leaves, cotangent.to(output.device, output.dtype))
    return [output.detach(), *grads]


def _distance(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return math.inf
    difference = float((got.detach().cpu().double() - expected).norm())
    norm = float(expected.norm())
    distance = difference / norm if norm > 0 else difference
    return distance if math.isfinite(distance) else math.inf


def _tensors(*shapes: Sequence[int]) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(tuple(shape), generator=draws, dtype=torch.float64) for shape in shapes]


def _elements(
    size: Sequence[int], lead: Sequence[int], version: str
) -> tuple[list[Tensor], dict[str, Any]]:
    """Positions, and widths if the version has them, for three elements; and the settings."""
    shape = (len(size), *lead, 3)
    P, SIG = _tensors(shape, shape)
    # A quarter of a step from the kinks at least: no rounding moves a position over one.
    P = P.round() + 0.3
    rows = [P, 0.6 + SIG.abs() / 4] if version in SIGMA_VERSIONS else [P]
    return rows, {"dilated_kernel_size": size, "version": version}


def cases(operators: Any = OPERATORS) -> Iterator[Case]:
    """Yields all cases.

    Args:
        operators: has the functions that ``OPERATORS`` has.
    """
    for dtype in DTYPES:
        for size in _SIZES:
            for version in VERSIONS:
                yield _construct(operators, dtype, size, version)
                yield _support(operators, dtype, size, version)
                yield _layer(operators, dtype, size, version)
                yield _im2col(operators, dtype, size, version)
                yield _im2col_conv(operators, dtype, size, version)
            for channels_last in (False, True) if len(size) > 1 else (False,):
                for groups in (4, 1):
                    yield _direct(operators, dtype, size, groups, channels_last)


def _name(size: Sequence[int], version: str) -> str:
    return f"{version} {len(size)}-D"


def _construct(operators: Any, dtype: torch.dtype, size: Sequence[int], version: str) -> Case:
    rows, settings = _elements(size, (4, 2), version)
    (weight,) = _tensors((4, 2, 3))

    def function(*tensors: Tensor) -> Tensor:
        kernel: Tensor = operators.construct_kernel(*tensors, **settings)
        return kernel

    def oracle(*tensors: Tensor) -> Tensor:
        expected: Tensor = _REFERENCE.construct_kernel(*tensors, **settings)
        return expected

    what = _name(size, version)
    return Case("construct_kernel", what, dtype, function, oracle, [weight, *rows])


def _support(operators: Any, dtype: torch.dtype, size: Sequence[int], version: str) -> Case:
    """Neither a value nor a gradient comes from a cell that the support leaves out."""
    of_kernel = _construct(operators, dtype, size, version)
    settings = {"dilated_kernel_size": size, "version": version}

    def function(*tensors: Tensor) -> Tensor:
        rows = [tensor.detach() for tensor in tensors[1:]]
        support: Tensor = operators.construct_support(*rows, **settings)
        return of_kernel.function(*tensors) * support

    return of_kernel._replace(operator="construct_support", function=function)


def _layer(operators: Any, dtype: torch.dtype, size: Sequence[int], version: str) -> Case:
    rows, settings = _elements(size, (4, 1), version)
    input, weight, bias = _tensors((2, 4, *_spatial(size)), (4, 1, 3), (4,))
    ones = [1] * len(size)

    def function(input: Tensor, weight: Tensor, bias: Tensor, *rows: Tensor) -> Tensor:
        output: Tensor = operators.layer(
            input,
            weight,
            rows[0],
            rows[1] if len(rows) > 1 else None,
            bias,
            size,
            list(range(len(size))),
            version,
            resolve_sigma_min(version, None),
            size,
            ones,
            ones,
            4,
            [True, True],
        )
        return output

    def oracle(input: Tensor, weight: Tensor, bias: Tensor, *rows: Tensor) -> Tensor:
        kernel = _REFERENCE.construct_kernel(weight, *rows, **settings)
        convolve: Any = _CONV[len(size) - 1]
        output: Tensor = convolve(input, kernel, bias, padding=1, groups=4)
        return output

    inputs = [input, weight, bias, *rows]
    what = _name(size, version)
    return Case("layer", what, dtype, function, oracle, inputs, channels_last=len(size) == 2)


def _spatial(size: Sequence[int]) -> list[int]:
    return [length + 4 for length in size]


def _sides(size: Sequence[int]) -> dict[str, Any]:
    """Stride and padding as the reference takes them, of a padding of 1."""
    return {"stride": [1] * len(size), "padding": [1] * 2 * len(size)}


def _im2col(operators: Any, dtype: torch.dtype, size: Sequence[int], version: str) -> Case:
    rows, settings = _elements(size, (4,), version)
    (input,) = _tensors((2, 4, *_spatial(size)))

    def function(*tensors: Tensor) -> Tensor:
        columns: Tensor = operators.im2col(*tensors, padding=1, **settings)
        return columns

    def oracle(*tensors: Tensor) -> Tensor:
        expected: Tensor = _REFERENCE.im2col(*tensors, **_sides(size), **settings)
        return expected

    return Case("im2col", _name(size, version), dtype, function, oracle, [input, *rows])


def _im2col_conv(operators: Any, dtype: torch.dtype, size: Sequence[int], version: str) -> Case:
    rows, settings = _elements(size, (4,), version)
    input, weight, bias = _tensors((2, 4, *_spatial(size)), (6, 2, 3), (6,))

    def function(*tensors: Tensor) -> Tensor:
        output: Tensor = operators.im2col_conv(*tensors, padding=1, groups=2, **settings)
        return output

    def oracle(*tensors: Tensor) -> Tensor:
        expected: Tensor = _REFERENCE.im2col_conv(*tensors, groups=2, **_sides(size), **settings)
        return expected

    inputs = [input, weight, bias, *rows]
    return Case("im2col_conv", _name(size, version), dtype, function, oracle, inputs)


def _direct(
    operators: Any, dtype: torch.dtype, size: Sequence[int], groups: int, channels_last: bool
) -> Case:
    input, kernel, bias = _tensors((2, 4, *_spatial(size)), (8, 4 // groups, *size), (8,))
    # Most cells of a constructed kernel are zero, and get no gradient.
    support = kernel > 0.3

    def function(input: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        cells = support.to(kernel.device)
        output: Tensor = operators.direct_conv(
            input, kernel * cells, bias, padding=1, groups=groups, support=cells
        )
        return output

    def oracle(input: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        convolve: Any = _CONV[len(size) - 1]
        output: Tensor = convolve(input, kernel * support, bias, padding=1, groups=groups)
        return output

    layout = " channels_last" if channels_last else ""
    what = f"{len(size)}-D, {groups} group{'s'[: groups - 1]}{layout}"
    inputs = [input, kernel, bias]
    return Case("direct_conv", what, dtype, function, oracle, inputs, channels_last)
