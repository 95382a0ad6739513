"""Random im2col problems, and the comparison with the float64 reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rounding import unit_errors
from support import NORMALISED, ROUNDINGS, SIGMA_VERSIONS, relative_error
from torch import Tensor

from DCLS import reference
from DCLS.functional import im2col, im2col_conv


@dataclass
class Im2colProblem:
    """Arguments of im2col and im2col_conv."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    P: Tensor
    SIG: Tensor | None
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    version: str

    @property
    def options(self) -> dict[str, Any]:
        return {
            "dilated_kernel_size": self.size,
            "stride": self.stride,
            "padding": self.padding,
            "version": self.version,
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the convolution that are there."""
        names = ("input", "weight", "bias", "P", "SIG")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    @property
    def column_tensors(self) -> dict[str, Tensor]:
        """Those of im2col."""
        return {n: t for n, t in self.tensors.items() if n not in ("weight", "bias")}

    def to(
        self,
        dtype: torch.dtype,
        position_dtype: torch.dtype | None = None,
        device: str | None = None,
    ) -> Im2colProblem:
        changed = {
            name: tensor.detach()
            .to(device, position_dtype or dtype if name in ("P", "SIG") else dtype)
            .requires_grad_()
            for name, tensor in self.tensors.items()
        }
        return replace(self, **changed)

    def columns(self, **more: Any) -> Tensor:
        return im2col(self.input, self.P, self.SIG, **{**self.options, **more})

    def conv(self, **more: Any) -> Tensor:
        tensors = (self.input, self.weight, self.bias, self.P, self.SIG)
        return im2col_conv(*tensors, groups=self.groups, **{**self.options, **more})

    def _reference_options(self) -> dict[str, Any]:
        both = [side for p in self.padding for side in (p, p)]
        return {**self.options, "padding": both}

    def reference_columns(self) -> Tensor:
        return reference.im2col(self.input, self.P, self.SIG, **self._reference_options())

    def reference_conv(self) -> Tensor:
        tensors = (self.input, self.weight, self.bias, self.P, self.SIG)
        return reference.im2col_conv(*tensors, groups=self.groups, **self._reference_options())


def make_im2col(
    version: str,
    input_size: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    batch: int = 2,
    channels: int = 4,
    out_channels: int = 6,
    elements: int = 3,
    groups: int = 2,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> Im2colProblem:
    """A problem with ordinary positions, exact grid points, and ones outside of the grid."""
    generator = torch.Generator().manual_seed(seed)
    D = len(size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    P = normal(D, channels, elements)
    P *= torch.tensor(size, dtype=torch.float64).reshape(D, 1, 1) / 4
    P.view(-1)[::7] = P.view(-1)[::7].round()  # the kinks
    P.view(-1)[5::23] *= 1000  # far outside
    SIG = normal(D, channels, elements) if version in SIGMA_VERSIONS else None
    problem = Im2colProblem(
        normal(batch, channels, *input_size),
        normal(out_channels, channels // groups, elements),
        normal(out_channels),
        P,
        SIG,
        tuple(size),
        tuple(stride or [1] * D),
        tuple(padding if padding is not None else [length // 2 for length in size]),
        groups,
        version,
    )
    # Rounded first, so that the float64 reference can be given the very same numbers.
    for name, tensor in problem.tensors.items():
        setattr(problem, name, tensor.to(device, dtype))
    return problem.to(dtype)


def cotangent_of(output: Tensor) -> Tensor:
    """A random cotangent that is exact in all dtypes."""
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return cotangent.to(torch.bfloat16).to(output.device, output.dtype)


def results(output: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output, and the gradients of all tensors for a random cotangent."""
    grads = torch.autograd.grad(output, list(tensors.values()), cotangent_of(output))
    return {"output": output.detach(), **dict(zip(tensors, grads, strict=True))}


def assert_same(
    got: dict[str, Tensor],
    want: dict[str, Tensor],
    tolerance: float,
    rounding: dict[str, float] | None = None,
) -> None:
    """Compares norm-wise; ``rounding`` is the norm of an error that rounding alone can make."""
    assert got.keys() == want.keys()
    for name, value in got.items():
        error, limit = relative_error(value, want[name]), tolerance
        if rounding is not None and name in rounding:
            # As relative_error: of a result that is zero, the error itself.
            limit += rounding[name] / (want[name].norm().item() or 1.0)
        assert error <= limit, f"{name}: relative error {error:.2e} > {tolerance:.0e}, {limit:.2e}"


def _rounding(exact: Im2colProblem, grad_columns: Tensor, unit: float) -> dict[str, float]:
    """Norms of the errors of rounding in the gradients of P and SIG.

    A normalised derivative is a difference of two numbers. If a single grid point sees an element,
    they are nearly equal, and little more than their rounding is left. ``grad_columns`` is the
    gradient of the columns, with the absolute values of all numbers that it is a sum of.
    """
    channels, elements = exact.P.shape[1:]
    lead = (channels * elements, 1)
    kernels = torch.ones(*lead, *exact.size, dtype=torch.float64, requires_grad=True)
    padding = exact._reference_options()["padding"]
    columns = reference._convolve(exact.input.abs(), kernels, None, exact.stride, padding, channels)
    (cotangent,) = torch.autograd.grad(columns, kernels, grad_columns.reshape(columns.shape))
    rows = [
        None if row is None else row.detach().reshape(len(exact.size), *lead, 1)
        for row in (exact.P, exact.SIG)
    ]
    ones = torch.ones(*lead, 1, dtype=torch.float64)
    normalised = exact.version in NORMALISED
    _, _, *bounds = unit_errors(ones, *rows, cotangent, exact.version, normalised)
    norms = [ROUNDINGS * unit * bound.norm().item() for bound in bounds]
    return dict(zip(("P", "SIG"), norms, strict=False))


def assert_matches_reference(problem: Im2colProblem, tolerance: float, **more: Any) -> None:
    """Columns and convolution, values and gradients, against float64 on the CPU."""
    exact = problem.to(torch.float64, device="cpu")
    unit = torch.finfo(problem.P.dtype).eps / 2
    want = exact.reference_columns()
    grad_columns = cotangent_of(want).abs()
    assert_same(
        results(problem.columns(), problem.column_tensors),
        results(want, exact.column_tensors),
        tolerance,
        _rounding(exact, grad_columns, unit),
    )
    points, groups, outputs = want.shape[3:].numel(), exact.groups, len(exact.weight)
    want = exact.reference_conv()
    grad = cotangent_of(want).abs().reshape(len(want), groups, outputs // groups, points)
    weight = exact.weight.detach().abs().reshape(groups, outputs // groups, -1)
    assert_same(
        results(problem.conv(**more), problem.tensors),
        results(want, exact.tensors),
        tolerance,
        _rounding(exact, torch.einsum("gow,ngop->ngwp", weight, grad), unit),
    )
