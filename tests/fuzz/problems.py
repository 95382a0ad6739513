"""A case as tensors: what DCLS computes from them, what the oracle does, and the bounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fuzz.bounds import Bound, Construct, bilinear, exact, pulled
from fuzz.draw import LAYER_OF, Case
from fuzz.tensors import Draw, Problem, compute_dtype
from fuzz.torch_faults import torch_convolves
from torch import Tensor

import DCLS.im2col.modules as im2col_layers
from DCLS import _spec, functional, reference

CONV = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _has_width(case: Case) -> bool:
    return case["version"] in _spec.SIGMA_VERSIONS


def _sigma_min(case: Case) -> float | None:
    return case["sigma_min"] if _has_width(case) else None


def make(case: Case) -> Problem:
    """Returns the problem of a case."""
    return {
        "construct": _construct,
        "conv": _conv,
        "im2col": _im2col,
        "im2col_conv": _im2col_conv,
        "layer": _layer,
    }[case["kind"]](case)


def _construct(case: Case) -> Problem:
    draw, size = Draw(case), case["kernel"]
    shape = (*case["lead"], case["elements"])
    tensors = {"weight": draw.normal(*shape)}
    tensors["P"] = draw.positions(size, *shape, dtype=draw.dtype)
    if _has_width(case):
        tensors["SIG"] = draw.widths(size, *shape, dtype=draw.dtype)
    options: dict[str, Any] = {"dilated_kernel_size": size, "version": case["version"]}
    options["sigma_min"] = _sigma_min(case)

    def bounds(
        g: Bound, t: dict[str, Tensor], eps: float, units: float, floor: float, low: bool
    ) -> dict[str, Bound]:
        del units, floor, low
        built = Construct(
            t["weight"], t["P"], t.get("SIG"), tuple(size), case["version"], _sigma_min(case), eps
        )
        return {"output": built.kernel, **built.gradients(g)}

    return Problem(
        case,
        tensors,
        lambda **t: functional.construct_kernel(**t, **options),
        lambda **t: reference.construct_kernel(**t, **options),
        bounds,
        ("weight", "P", "SIG"),
    )


def _geometry(case: Case) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return tuple(case["stride"]), tuple(case["padding"]), tuple(case["dilation"])


def _of_conv(
    f: Callable[[Tensor, Tensor], Tensor],
    g: Bound,
    x: Bound,
    kernel: Bound,
    bias: Tensor | None,
    units: tuple[float, float] = (1.0, 0.0),
) -> tuple[Bound, dict[str, Bound], Bound]:
    """Bounds of the output, of the gradients of input and bias, and of that of the kernel."""
    output = bilinear(f, x, kernel, units)
    grads = {"input": pulled(f, 0, g, kernel, x.value, units)}
    if bias is not None:
        b = bias.double().reshape(-1, *[1] * (output.value.ndim - 2))
        # The sum may begin with the bias: each addition then rounds it, too.
        terms = f(torch.ones_like(x.value), torch.ones_like(kernel.value)) + 1
        output = Bound(
            output.value + b, output.error + terms * units[0] * b.abs() + output.value.abs()
        )
        grads["bias"] = g.sum((0, *range(2, g.value.ndim)))
    return output, grads, pulled(f, 1, g, x, kernel.value, units)


def _conv(case: Case) -> Problem:
    draw, (stride, padding, dilation) = Draw(case), _geometry(case)
    first, second = case["channels"]
    ndim = len(stride)
    tensors = {"input": draw.normal(case["batch"], first, *case["input"])}
    tensors["weight"] = draw.kernel(second, first // case["groups"], *case["kernel"])
    if case["bias"]:
        tensors["bias"] = draw.normal(second)
    marks = draw.marks(tensors["weight"]) if case["support"] else None
    rest = (stride, padding, dilation, case["groups"])

    def f(x: Tensor, kernel: Tensor) -> Tensor:
        return CONV[ndim - 1](x, kernel, None, *rest)

    def run(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, support: Tensor | None = marks
    ) -> Tensor:
        return functional.direct_conv(input, weight, bias, *rest, support)

    def oracle(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, support: Tensor | None = marks
    ) -> Tensor:
        if support is not None:
            weight = torch.where(support, weight, weight.detach())
        return CONV[ndim - 1](input, weight, bias, *rest)

    def bounds(
        g: Bound, t: dict[str, Tensor], eps: float, units: float, floor: float, low: bool
    ) -> dict[str, Bound]:
        del eps
        x, kernel = exact(t["input"]), exact(t["weight"])
        if low:
            x, kernel, g = (b.rounded(units, floor) for b in (x, kernel, g))
        output, grads, grad_kernel = _of_conv(f, g, x, kernel, t.get("bias"))
        if low:
            output = output.rounded(units, floor)
        if marks is not None:
            grad_kernel = grad_kernel.on(lambda t: t * marks)
        return {"output": output, "weight": grad_kernel, **grads}

    constants = {} if marks is None else {"support": marks}
    return Problem(case, tensors, run, oracle, bounds, ("input", "weight", "bias"), constants)


def _dense(
    case: Case,
    t: dict[str, Tensor],
    spread: Callable[[Tensor], Tensor],
    gather: Callable[[Bound], Bound],
    shape: tuple[int, ...],
    f: Callable[[Tensor, Tensor], Tensor],
    pad: Callable[[Tensor], Tensor],
    numbers: tuple[Bound, float, float, float, bool],
    sigma_min: float | None,
    size: tuple[int, ...],
    weight: Tensor,
) -> dict[str, Bound]:
    """Bounds of a convolution with a constructed kernel.

    ``spread`` gives positions and widths as construct takes them and ``gather`` is its converse,
    ``shape`` is that of the kernel, and ``pad`` makes the input of ``f``.
    """
    g, eps, units, floor, low = numbers
    # Torch's own convolution may keep the sums of 16 bits in 16 bits; those of DCLS are float32.
    sums = units if units and torch_convolves(case) else 1.0
    # Each product of im2col has a column, or its gradient, that was rounded once.
    once = 0.0 if torch_convolves(case) else units
    SIG = t.get("SIG")
    built = Construct(
        weight,
        spread(t["P"]),
        None if SIG is None else spread(SIG),
        size,
        case["version"],
        sigma_min,
        eps,
        units if low else 0.0,
    )
    # Kernel, columns and their gradients may be kept in 16 bits.
    kernel = built.kernel.on(lambda k: k.reshape(shape)).rounded(units, floor)
    kernel.error += once * built.magnitude.reshape(shape)
    x = exact(pad(t["input"].double()))
    if low:
        x, g = x.rounded(units, floor), g.rounded(units, floor)
    output, grads, grad_kernel = _of_conv(f, g, x, kernel, t.get("bias"), (sums, once))
    unpad = torch.func.vjp(pad, t["input"].double())[1]
    grads["input"] = grads["input"].on(lambda v: unpad(v)[0])
    grad_kernel = grad_kernel.rounded(units, floor)
    grads |= built.gradients(grad_kernel.on(lambda k: k.reshape(built.kernel.value.shape)))
    for name in ("P", "SIG"):
        if name in grads:
            grads[name] = gather(grads[name])
    return {"output": output.rounded(units if low else 0.0, floor), **grads}


def _shared(case: Case, rows: Tensor) -> Tensor:
    """(D, I, K) to (D, O, I/g, K), as reference.im2col_conv has it."""
    groups, second = case["groups"], case["channels"][1]
    of_groups = rows.unflatten(1, (groups, case["channels"][0] // groups))
    return of_groups.repeat_interleave(second // groups, 1)


def _gathered(case: Case, grads: Bound) -> Bound:
    """The gradients of shared rows: those of all output channels of a group, added."""
    groups, second = case["groups"], case["channels"][1]
    apart = grads.on(lambda t: t.unflatten(1, (groups, second // groups)))
    return apart.sum((2,)).on(lambda t: t.flatten(1, 2))


def _im2col_tensors(case: Case, draw: Draw) -> tuple[dict[str, Tensor], dict[str, Any]]:
    first, K = case["channels"][0], case["elements"]
    own = draw.dtype
    dtype = compute_dtype(own) if case["position_dtype"] == "float32" else own
    tensors = {"input": draw.normal(case["batch"], first, *case["input"])}
    tensors["P"] = draw.positions(case["kernel"], first, K, dtype=dtype)
    if _has_width(case):
        tensors["SIG"] = draw.widths(case["kernel"], first, K, dtype=dtype)
    options = {"dilated_kernel_size": case["kernel"], "stride": case["stride"]}
    options |= {"padding": case["padding"], "version": case["version"]}
    options["sigma_min"] = _sigma_min(case)
    return tensors, options


def _both(options: dict[str, Any]) -> dict[str, Any]:
    """The padding of reference.im2col has both sides."""
    return {**options, "padding": [side for p in options["padding"] for side in (p, p)]}


def _im2col(case: Case) -> Problem:
    draw, (stride, padding, _) = Draw(case), _geometry(case)
    first, K, ndim = case["channels"][0], case["elements"], len(stride)
    tensors, options = _im2col_tensors(case, draw)
    size = tuple(case["kernel"])

    def f(x: Tensor, kernel: Tensor) -> Tensor:
        return CONV[ndim - 1](x, kernel, None, stride, padding, 1, first)

    def spread(rows: Tensor) -> Tensor:
        return rows.reshape(ndim, first * K, 1, 1)

    def bounds(
        g: Bound, t: dict[str, Tensor], eps: float, units: float, floor: float, low: bool
    ) -> dict[str, Bound]:
        flat = g.on(lambda v: v.flatten(1, 2))
        got = _dense(
            case,
            t,
            spread,
            lambda b: b.on(lambda v: v.reshape(ndim, first, K)),
            (first * K, 1, *size),
            f,
            lambda x: x,
            (flat, eps, units, floor, low),
            _sigma_min(case),
            size,
            torch.ones(first * K, 1, 1, dtype=torch.float64),
        )
        got["output"] = got["output"].on(lambda v: v.unflatten(1, (first, K)))
        return got

    return Problem(
        case,
        tensors,
        lambda **t: functional.im2col(**t, **options),
        lambda **t: reference.im2col(**t, **_both(options)),
        bounds,
        ("input", "P", "SIG"),
    )


def _im2col_conv(case: Case) -> Problem:
    draw, (stride, padding, _) = Draw(case), _geometry(case)
    first, second = case["channels"]
    groups, size, ndim = case["groups"], tuple(case["kernel"]), len(stride)
    tensors, options = _im2col_tensors(case, draw)
    options["groups"] = groups
    tensors["weight"] = draw.normal(second, first // groups, case["elements"])
    if case["bias"]:
        tensors["bias"] = draw.normal(second)
    small = first // groups * case["elements"] * max(8, draw.dtype.itemsize) * 5

    def f(x: Tensor, kernel: Tensor) -> Tensor:
        return CONV[ndim - 1](x, kernel, None, stride, padding, 1, groups)

    def bounds(
        g: Bound, t: dict[str, Tensor], eps: float, units: float, floor: float, low: bool
    ) -> dict[str, Bound]:
        return _dense(
            case,
            t,
            lambda rows: _shared(case, rows),
            lambda b: _gathered(case, b),
            (second, first // groups, *size),
            f,
            lambda x: x,
            (g, eps, units, floor, low),
            _sigma_min(case),
            size,
            t["weight"],
        )

    def run(**t: Tensor) -> Tensor:
        workspace = max(small, 64) if case["workspace"] == "small" else None
        return functional.im2col_conv(
            t.pop("input"),
            t.pop("weight"),
            t.pop("bias", None),
            **t,
            **options,
            workspace=workspace,
        )

    def oracle(**t: Tensor) -> Tensor:
        return reference.im2col_conv(
            t.pop("input"), t.pop("weight"), t.pop("bias", None), **t, **_both(options)
        )

    return Problem(case, tensors, run, oracle, bounds)


def _layer(case: Case) -> Problem:
    draw, (stride, padding, _) = Draw(case), _geometry(case)
    spec = LAYER_OF.get(case["layer"])
    first, second = case["channels"]
    ndim, groups, version, kernel = len(stride), case["groups"], case["version"], case["kernel"]
    more: dict[str, Any] = {"dtype": draw.dtype, "version": version, "stride": stride}
    more |= {"padding": padding, "groups": groups, "bias": case["bias"]}
    axes = tuple(range(ndim))
    if spec is None:
        learnable = tuple(kernel)
        kind: Any = getattr(im2col_layers, f"Dcls{ndim}d")
        module = kind(
            first,
            second,
            case["elements"],
            dilated_kernel_size=learnable,
            padding_mode=case["padding_mode"],
            **more,
        )
    else:
        learnable = tuple(kernel[len(spec.dense) :])
        if spec.name == "Dcls2dK1d":
            learnable = (kernel[spec.more["flat_dim"]],)
        if spec.dense:
            more["dense_kernel_size"] = tuple(kernel[: len(spec.dense)])
        if spec.transposed:
            more["output_padding"] = case["output_padding"]
        else:
            more |= {"method": case["method"], "padding_mode": case["padding_mode"]}
        axes = spec.axes(version)
        module = spec.make(first, second, case["elements"], dilated_kernel_size=learnable, **more)
    transposed = spec is not None and spec.transposed
    sigma_min = 1.0 if spec and (spec.name, version) == ("Dcls2_1d", "gauss") else None
    tensors = {"input": draw.normal(case["batch"], first, *case["input"])}
    tensors["weight"] = draw.normal(*module.weight.shape)
    sizes = [learnable[axis] for axis in axes]
    rows = module.P.shape[1:]
    tensors["P"] = draw.positions(sizes, *rows, dtype=draw.dtype)
    if module.SIG is not None:
        tensors["SIG"] = draw.widths(sizes, *rows, dtype=draw.dtype)
    if case["bias"]:
        tensors["bias"] = draw.normal(second)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in tensors)
    back = [axes.index(axis) for axis in range(len(axes))]

    def spread(t: Tensor) -> Tensor:
        ordered = t[back]
        return _shared(case, ordered) if spec is None else ordered

    def gather(b: Bound) -> Bound:
        b = _gathered(case, b) if spec is None else b
        return b.on(lambda t: t[list(axes)])

    lead = (first, second // groups) if transposed else (second, first // groups)

    def f(x: Tensor, k: Tensor) -> Tensor:
        if transposed:
            return TRANSPOSED[ndim - 1](x, k, None, stride, padding, case["output_padding"], groups)
        return CONV[ndim - 1](x, k, None, stride, 0, 1, groups)

    def pad(x: Tensor) -> Tensor:
        if transposed:
            return x
        # Zeros, too: some convolutions of torch skip them, where a NaN of the kernel meets them.
        sides = [p for p in reversed(padding) for _ in range(2)]
        mode = case["padding_mode"]
        return F.pad(x, sides, mode="constant" if mode == "zeros" else mode)

    def run(**t: Tensor) -> Tensor:
        x = t.pop("input")
        return torch.func.functional_call(module, t, (x,))

    @functools.cache
    def direct() -> bool:
        if case["mode"] != "second" or spec is None or transposed:
            return False
        module.load_state_dict(tensors, strict=False)  # the choice looks at the positions
        method: str = module.explain(tensors["input"]).method
        return method == "direct"

    def oracle(**t: Tensor) -> Tensor:
        SIG = t.get("SIG")
        k = reference.construct_kernel(
            t["weight"],
            spread(t["P"]),
            None if SIG is None else spread(SIG),
            dilated_kernel_size=learnable,
            version=version,
            sigma_min=sigma_min,
        )
        if direct():
            # Of second derivatives: where neither a tap nor its slope is, a cell is a constant.
            moves = functional.construct_support(
                spread(t["P"]),
                None if SIG is None else spread(SIG),
                dilated_kernel_size=learnable,
                version=version,
                sigma_min=sigma_min,
            )
            k = torch.where(moves, k, k.detach())
        output = f(pad(t["input"]), k.reshape(*lead, *kernel))
        if "bias" in t:
            output = output + t["bias"].reshape(-1, *[1] * ndim)
        return output

    def bounds(
        g: Bound, t: dict[str, Tensor], eps: float, units: float, floor: float, low: bool
    ) -> dict[str, Bound]:
        return _dense(
            case,
            t,
            spread,
            gather,
            (*lead, *kernel),
            f,
            pad,
            (g, eps, units, floor, low),
            sigma_min,
            learnable,
            t["weight"],
        )

    assert math.prod(learnable) > 0
    return Problem(case, tensors, run, oracle, bounds)
