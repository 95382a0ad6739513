"""Runs a case and compares all that it gives with the oracle."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fuzz.bounds import exact as known
from fuzz.draw import Case
from fuzz.problems import make
from fuzz.tensors import Problem, compute_dtype, lay
from fuzz.torch_faults import torch_errs
from torch import Tensor
from torch.autograd import forward_ad

#: Parts of the largest magnitude to which derivatives beyond the first agree in float64. They come
#: from the reference itself, so that only cancellation sets them apart: half of the digits.
HALF_THE_DIGITS = torch.finfo(torch.float64).eps ** 0.5


class DifferenceError(AssertionError):
    """A result is not what it should be."""


def check(case: Case) -> str:
    """Runs a case.

    Returns:
        ``done``, or ``refused`` where torch's own convolution takes no such arguments, or errs.

    Raises:
        DifferenceError: a result is wrong.
        Exception: what DCLS raised.
    """
    with warnings.catch_warnings(), _threads(1):
        warnings.simplefilter("ignore")
        if torch_errs(case):
            return "refused"
        problem = make(case)
        before = {name: tensor.clone() for name, tensor in problem.tensors.items()}
        try:
            output = problem.oracle(**_in_double(problem.tensors))
        except RuntimeError:
            return "refused"
        if output.numel() == 0 and 0 in case.get("channels", ()):
            return "refused"  # torch's convolution of no channels has none, whatever the kernel
        _MODES[case["mode"]](problem)
    for name, tensor in problem.tensors.items():
        if not torch.equal(tensor, before[name]):
            raise DifferenceError(f"{name} was written to")
    return "done"


# -------------------------------------------------------------------------------------- comparison

#: How much may become of a product that is below the smallest normal number and so counts as zero.
#: It is divided by a sum of 1e-7 and multiplied by the slope of a tap by its width (14 widths from
#: its centre: 14^2 over a width of 0.05), by weights and gradients, and by their number: 1000.
FLUSHED = 1e7 * 14**2 / 0.05 * 1e3


def _in_double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the oracle is given.

    The kernels of DCLS take subnormal numbers as zero, except for the sign of a width.
    """
    return {
        n: t.double()
        if n == "SIG"
        else torch.where(t.abs() < torch.finfo(compute_dtype(t.dtype)).tiny, 0, t).double()
        for n, t in tensors.items()
    }


def _fail(name: str, got: Tensor, want: Tensor, limit: Tensor) -> None:
    error = (got.double() - want).abs()
    bad = ~(error <= limit)
    place = tuple(bad.nonzero()[0].tolist())
    raise DifferenceError(
        f"{name}{list(place)} is {got[place].item():.9g}, not {want[place].item():.9g}: off by "
        f"{error[place].item():.3g}, at most {limit[place].item():.3g} ({int(bad.sum())} of "
        f"{bad.numel()} values)"
    )


def _compare(name: str, got: Tensor, want: Tensor, limit: Tensor, dtype: torch.dtype) -> None:
    if got.dtype != dtype:
        raise DifferenceError(f"{name} has dtype {got.dtype}, not {dtype}")
    if got.shape != want.shape:
        raise DifferenceError(f"{name} has shape {tuple(got.shape)}, not {tuple(want.shape)}")
    # What may round to infinity is not compared.
    fits = want.abs() + limit < torch.finfo(dtype).max
    fine = ((got.double() - want).abs() <= limit) | ~fits
    if not bool(fine.all()):
        _fail(name, got, want, torch.where(fits, limit, torch.inf))


def _cotangent(problem: Problem, output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(problem.case["seed"] + 1)
    values = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    layouts = problem.case["layouts"]
    return lay(((values * 16).round() / 16).to(output.dtype), layouts[-2])


def _wanted(
    problem: Problem, g: Tensor, low: torch.dtype | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The output and all gradients of the oracle, and how far results may be off."""
    dtype = low or problem.dtype
    compute = compute_dtype(problem.dtype)
    eps = torch.finfo(compute).eps
    # One rounding to 16 bits, and what lies below its normal numbers.
    short = dtype.itemsize == 2
    units = torch.finfo(dtype).eps / eps if short else 0.0
    floor = torch.finfo(dtype).tiny / eps if short else 0.0
    exact = {n: t.detach().requires_grad_() for n, t in _in_double(problem.tensors).items()}
    output = problem.oracle(**exact)
    grads = torch.autograd.grad(output, list(exact.values()), g.double(), materialize_grads=True)
    want = {"output": output.detach(), **dict(zip(exact, grads, strict=True))}
    with torch.no_grad():
        plain = {n: t.detach() for n, t in exact.items()}
        bounds = problem.bounds(known(g.detach()), plain, eps, units, floor, low is not None)
    limits = {}
    for name, value in want.items():
        own = problem.tensors[name].dtype if name in problem.tensors else dtype
        info, error = torch.finfo(own), bounds[name].error
        flushed = FLUSHED * torch.finfo(compute).tiny
        limit = eps * error + info.eps * (value.abs() + eps * error) + flushed
        if short:
            limit = (
                limit
                + torch.finfo(dtype).eps * (value.abs() + eps * error)
                + torch.finfo(dtype).tiny
            )
        limits[name] = (value, limit)
        # The formulas of the bounds are right: they give the values of the oracle.
        if not bool(((bounds[name].value - value).abs() <= limit).all()):
            _fail(f"the bound of {name}", bounds[name].value, value, limit)
    return limits


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------- modes


def _leaves(problem: Problem) -> dict[str, Tensor]:
    return {n: t.detach().requires_grad_(n in problem.needs) for n, t in problem.tensors.items()}


def _values(problem: Problem, g: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
    """The output and the gradients that the case asks for."""
    leaves = _leaves(problem)
    output = problem.run(**leaves)
    g = _cotangent(problem, output.detach()) if g is None else g
    got = {"output": output.detach()}
    grads = torch.autograd.grad(
        output, [leaves[n] for n in problem.needs], g, materialize_grads=True
    )
    return got | dict(zip(problem.needs, grads, strict=True)), g


def _check_all(problem: Problem, got: dict[str, Tensor], want: Any, low: Any = None) -> None:
    for name, value in got.items():
        dtype = problem.tensors[name].dtype if name in problem.tensors else low or problem.dtype
        _compare(name, value, *want[name], dtype)


def _grad(problem: Problem) -> None:
    got, g = _values(problem, None)
    want = _wanted(problem, g)
    _check_all(problem, got, want)
    with _threads(2):
        again, _ = _values(problem, g)
    # Torch's own convolutions and products of matrices do not promise that.
    case = problem.case
    ours = case["kind"] in ("construct", "conv", "im2col") or (
        case.get("method") == "direct" and not case["layer"].startswith(("im2col", "DclsTranspose"))
    )
    for name, value in again.items():
        if ours and not torch.equal(value, got[name]):
            raise DifferenceError(f"{name} depends on the number of threads")
    _check_all(problem, again, want)
    with torch.no_grad():
        _check_all(problem, {"output": problem.run(**problem.tensors)}, want)


def _func_grad(problem: Problem) -> None:
    names = problem.needs
    output = problem.run(**problem.tensors)
    g = _cotangent(problem, output)

    def of(*tensors: Tensor) -> Tensor:
        all_of = {**problem.tensors, **dict(zip(names, tensors, strict=True))}
        # One product and one sum more than the cotangent alone, exact in float64.
        return (problem.run(**all_of).double() * g.double()).sum()

    places = tuple(range(len(names)))
    grads = torch.func.grad(of, places)(*(problem.tensors[n] for n in names))
    _check_all(problem, dict(zip(names, grads, strict=True)), _wanted(problem, g))


def _vmap(problem: Problem) -> None:
    every = {**problem.tensors, **problem.constants}
    names = list(every)
    r = random.Random(problem.case["seed"])
    dims: list[int | None] = []
    stacks, count = [], 2
    for i, name in enumerate(names):
        tensor = every[name]
        batched = problem.case["batched"][i]
        if batched:
            dim = r.randint(0, tensor.ndim)
            other = tensor.flip(-1) if tensor.ndim else tensor
            stacks.append(torch.stack([tensor, other], dim))
            dims.append(dim)
        else:
            stacks.append(tensor)
            dims.append(None)
    if all(dim is None for dim in dims):
        return

    def of(*tensors: Tensor) -> Tensor:
        return problem.run(**dict(zip(names, tensors, strict=True)))

    got = torch.func.vmap(of, tuple(dims))(*stacks)
    for i in range(count):
        one = {
            n: t if d is None else t.select(d, i)
            for n, t, d in zip(names, stacks, dims, strict=True)
        }
        tensors = {n: t for n, t in one.items() if n in problem.tensors}
        constants = {n: t for n, t in one.items() if n in problem.constants}
        single = Problem(problem.case, tensors, problem.run, problem.oracle, problem.bounds)
        g = torch.zeros_like(got[i])
        want = _wanted(single, g)["output"]
        del constants  # the support changes no output
        _compare(f"vmap's output {i}", got[i], *want, problem.dtype)


def _tangents(problem: Problem) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(problem.case["seed"] + 2)
    return {
        n: torch.randn(t.shape, generator=generator, dtype=t.dtype)
        for n, t in problem.tensors.items()
        if n in problem.needs
    }


def _half(name: str, got: Tensor, want: Tensor) -> None:
    scale = want.abs().max().clamp(min=1.0) if want.numel() else torch.ones(())
    _compare(name, got, want, HALF_THE_DIGITS * scale.expand_as(want), torch.float64)


def _jvp(problem: Problem) -> None:
    # Torch itself makes no dual tensor of an expanded one.
    problem.tensors = {n: t.clone() for n, t in problem.tensors.items()}
    tangents = _tangents(problem)
    names = list(tangents)

    def push(run: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        def of(*tensors: Tensor) -> Tensor:
            return run(**{**problem.tensors, **dict(zip(names, tensors, strict=True))})

        primals = tuple(problem.tensors[n] for n in names)
        return torch.func.jvp(of, primals, tuple(tangents[n] for n in names))

    _, want = push(problem.oracle)
    value, got = push(problem.run)
    _half("the tangent", got, want)
    with forward_ad.dual_level():
        duals = {
            n: forward_ad.make_dual(t, tangents[n]) if n in names else t
            for n, t in problem.tensors.items()
        }
        dual = forward_ad.unpack_dual(problem.run(**duals)).tangent
    if dual is None:
        raise DifferenceError("no tangent in dual_level")
    _half("the tangent in dual_level", dual, want)
    del value


def _second(problem: Problem) -> None:
    tangents = _tangents(problem)
    names = problem.needs

    def twice(run: Callable[..., Tensor]) -> dict[str, Tensor]:
        leaves = _leaves(problem)
        output = run(**leaves)
        g = _cotangent(problem, output.detach()).requires_grad_()
        of = [leaves[n] for n in names]
        first = torch.autograd.grad(output, of, g, create_graph=True, materialize_grads=True)
        total = sum((a * tangents[n]).sum() for a, n in zip(first, names, strict=True))
        second = torch.autograd.grad(total, [g, *of], materialize_grads=True, allow_unused=True)
        return dict(zip(["grad_output", *names], second, strict=True))

    want = twice(problem.oracle)
    for name, value in twice(problem.run).items():
        _half(f"second derivative by {name}", value, want[name])


def _autocast(problem: Problem) -> None:
    low = torch.float32 if problem.case["kind"] == "construct" else torch.bfloat16
    leaves = _leaves(problem)
    with torch.autocast("cpu", torch.bfloat16):
        output = problem.run(**leaves)
    g = _cotangent(problem, output.detach())
    grads = torch.autograd.grad(
        output, [leaves[n] for n in problem.needs], g, materialize_grads=True
    )
    got = {"output": output.detach(), **dict(zip(problem.needs, grads, strict=True))}
    _check_all(problem, got, _wanted(problem, g, low), low)


def _non_finite(problem: Problem) -> None:
    """A position that is not finite poisons its kernel or columns, and no other.

    Whether a NaN cell of a kernel also reaches outputs through the padding differs by method.
    """
    P = problem.tensors.get("P")
    if P is None or P.numel() == 0:
        return
    r = random.Random(problem.case["seed"])
    place = tuple(r.randrange(n) for n in P.shape)
    bad = P.clone()
    bad[place] = r.choice([float("nan"), float("inf"), -float("inf")])
    tensors = {**problem.tensors, "P": bad}
    # In the same dtype: which values are NaN is no matter of rounding.
    want = problem.oracle(**{n: t.to(compute_dtype(t.dtype)) for n, t in tensors.items()})
    got = problem.run(**tensors)
    expected = want.isnan()
    if problem.case.get("layer", "").startswith("DclsTranspose"):
        # Torch's own, in 16 bits, multiplies such a cell also by the zeros between strides.
        expected = expected.any((0, *range(2, got.ndim)), keepdim=True)
    wrong = got.isnan() & ~expected
    if problem.case["kind"] in ("construct", "im2col"):
        wrong = got.isnan() != expected
    elif not any(problem.case["padding"]) and want.isnan().any() and not got.isnan().any():
        raise DifferenceError(f"P{list(place)} = {bad[place].item()}: no output is NaN")
    if wrong.any():
        raise DifferenceError(f"P{list(place)} = {bad[place].item()}: other values are NaN")


_MODES: dict[str, Callable[[Problem], None]] = {
    "grad": _grad,
    "func_grad": _func_grad,
    "vmap": _vmap,
    "jvp": _jvp,
    "second": _second,
    "autocast": _autocast,
    "non_finite": _non_finite,
}
