"""What several test files share: random problems, and the comparison with the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rounding import unit_errors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from DCLS import VERSIONS, _spec, reference
from DCLS.functional import construct_kernel

#: In the order of the list, which a set has not.
SIGMA_VERSIONS = tuple(version for version in VERSIONS if version in _spec.SIGMA_VERSIONS)
NORMALISED = tuple(version for version in VERSIONS if version in _spec.NORMALISED)

#: Largest norm-wise error against the float64 oracle.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


@dataclass
class Problem:
    """Arguments of construct_kernel, and a cotangent for its result."""

    weight: Tensor
    P: Tensor
    SIG: Tensor | None
    size: tuple[int, ...]
    version: str
    cotangent: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        return [t for t in (self.weight, self.P, self.SIG) if t is not None]

    def to(self, dtype: torch.dtype, device: str | None = None) -> Problem:
        weight, P, SIG, cotangent = (
            None if t is None else t.detach().to(device, dtype)
            for t in (self.weight, self.P, self.SIG, self.cotangent)
        )
        for tensor in (weight, P, SIG):
            if tensor is not None:
                tensor.requires_grad_()
        return Problem(weight, P, SIG, self.size, self.version, cotangent)

    def run(self, function=construct_kernel, create_graph: bool = False) -> tuple[Tensor, ...]:
        """The kernel, then the gradients of weight, P and SIG."""
        kernel = function(
            self.weight,
            self.P,
            self.SIG,
            dilated_kernel_size=self.size,
            version=self.version,
        )
        grads = torch.autograd.grad(kernel, self.inputs, self.cotangent, create_graph=create_graph)
        return kernel, *grads


def make_problem(
    version: str,
    size: Sequence[int],
    lead: Sequence[int] = (3, 2),
    elements: int = 4,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    """A problem with ordinary positions, exact grid points, and ones outside the grid."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    D = len(size)
    P = normal(D, *lead, elements)
    P *= torch.tensor(size, dtype=torch.float64).reshape(D, *[1] * (len(lead) + 1)) / 4
    flat = P.view(-1)
    flat[::7] = flat[::7].round()  # the kinks
    flat[5::23] *= 1000  # far outside
    SIG = normal(D, *lead, elements) if version in SIGMA_VERSIONS else None
    if SIG is not None:
        SIG.view(-1)[::11] = 0  # the kink of abs
    weight, cotangent = normal(*lead, elements), normal(*lead, *size)
    # Rounded first, so that the float64 oracle can be given the very same numbers.
    tensors = [None if t is None else t.to(device, dtype) for t in (weight, P, SIG, cotangent)]
    return Problem(tensors[0], tensors[1], tensors[2], tuple(size), version, tensors[3]).to(dtype)


def relative_error(got: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Norm of the difference over the norm of `expected`, which counts as at least `floor`."""
    assert got.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    got, expected = got.cpu().double(), expected.cpu().double()
    scale = max(expected.norm().item(), floor)
    difference = (got - expected).norm().item()
    return difference / scale if scale > 0 else difference


#: Roundings of a tap beyond those that ``unit_errors`` counts: at most four of each number, the
#: distance, the width, its inverse and their product, and an ``exp`` that is right to 2 ulp.
ROUNDINGS = 4


def assert_matches_oracle(problem: Problem, tolerance: float) -> None:
    """Compares with plain torch in float64, on the CPU.

    An error may be larger than ``tolerance`` where rounding alone can make it so: where a tap is
    far out on its gaussian, or alone on its axis, so that its normalised derivative is the
    difference of two nearly equal numbers.
    """
    got = problem.run()
    exact = problem.to(torch.float64, "cpu")
    expected = exact.run(reference.construct_kernel)
    dtype = problem.weight.dtype
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    bounds: list[Tensor] = []
    for i, name in enumerate(("kernel", "weight", "P", "SIG")[: len(got)]):
        assert got[i].dtype == dtype
        error = relative_error(got[i], expected[i])
        if error <= tolerance:
            continue
        if not bounds:
            tensors = (exact.weight, exact.P, exact.SIG, exact.cotangent)
            tensors = tuple(None if t is None else t.detach() for t in tensors)
            bounds = unit_errors(*tensors, problem.version, problem.version in NORMALISED)
        # As relative_error: of a result that is zero, the error itself.
        scale = expected[i].norm().item() or 1.0
        limit = tolerance + ROUNDINGS * unit * bounds[i].norm().item() / scale
        assert error <= limit, f"{name}: relative error {error:.2e} > {tolerance:.0e}, {limit:.2e}"


class Calls(TorchDispatchMode):
    """Records the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(func)
        return func(*args, **(kwargs or {}))
