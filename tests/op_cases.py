"""Arguments of all operators of ``torch.ops.dcls``, in float64 and off the kinks of the taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPERATORS = (
    *("construct_kernel", "construct_kernel_backward", "construct_support"),
    *("direct_conv", "direct_conv_backward", "im2col", "im2col_backward"),
    *("im2col_conv", "im2col_conv_backward", "layer", "layer_backward"),
)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _elements(*lead: int) -> tuple[Tensor, Tensor]:
    P = _random(2, *lead).clamp(-1.4, 1.4).floor() + 0.2 + 0.6 * torch.rand(2, *lead).double()
    return P, P.frac().abs() * 0.1 + 0.21


def arguments(name: str, with_support: bool = False) -> list[Any]:
    """Arguments of the operator ``name``; those of a backward operator fit each other."""
    torch.manual_seed(0)
    x, weight, bias = _random(2, 2, 4, 4), _random(2, 1, 2), _random(2)
    if name.startswith("construct"):
        P, SIG = _elements(2, 1, 2)
        spec: list[Any] = [[3, 4], "gauss", 0.27]
        forward = [P, SIG, *spec] if name == "construct_support" else [weight, P, SIG, *spec]
        tensors = 3
    elif name.startswith("direct_conv"):
        kernel = _random(2, 1, 3, 2)
        support = torch.rand(kernel.shape) < 0.5 if with_support else None
        forward, tensors = [x, kernel, bias, support, [2, 1], [1, 0], [1, 1], 2], 3
    elif name.startswith("layer"):
        P, SIG = _elements(2, 1, 2)
        spec = [[3, 4], [1, 0], "gauss", 0.27, [4, 3], [1, 1], [1, 1], 2, [True, True]]
        forward, tensors = [x, weight, P, SIG, bias, *spec], 5
    else:
        P, SIG = _elements(2, 2)
        spec = [[3, 4], [1, 1], [1, 1, 1, 1], "gauss", 0.27]
        forward, tensors = [x, P, SIG, *spec], 3
        if name.startswith("im2col_conv"):
            forward, tensors = [x, weight, bias, P, SIG, *spec, 2, 1 << 20], 4
    if not name.endswith("backward"):
        return forward
    result = getattr(torch.ops.dcls, name.removesuffix("_backward"))(*forward)
    given = list(forward)
    if name.startswith(("direct_conv", "im2col_conv")):
        del given[2]  # the bias
    if name.startswith("layer"):
        result, given[4] = result
    return [_random(*result.shape), *given, [True] * tensors]


def results(output: Any) -> list[Tensor]:
    """The results that are numbers or marks: what a layer saves is its own affair."""
    every = output if isinstance(output, (tuple, list)) else (output,)
    return [tensor for tensor in every if tensor.dtype != torch.uint8]


def places(args: list[Any], floating: bool = False) -> list[int]:
    """Places of the tensors among the arguments."""
    return [
        i
        for i, arg in enumerate(args)
        if isinstance(arg, Tensor) and (arg.is_floating_point() or not floating)
    ]


def function(name: str, args: list[Any]) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The operator as a function of its tensors that are numbers, and these."""
    numbers = places(args, floating=True)
    operator = getattr(torch.ops.dcls, name)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = list(args)
        for place, tensor in zip(numbers, tensors, strict=True):
            given[place] = tensor
        return tuple(results(operator(*given)))

    return call, [args[place] for place in numbers]
