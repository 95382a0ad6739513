"""Floating-point operations of the operators, for ``torch.utils.flop_counter.FlopCounterMode``.

A convolution counts as torch's with the dense kernel, whichever way it is computed, so that a count
does not depend on the method. Sampled convolutions count the product of weights and columns.
Building a kernel and sampling count nothing, as torch counts no elementwise work.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"

Shape = Sequence[int]


def _convolution(input: Shape, kernel: Shape, output: Shape) -> int:
    from torch.utils.flop_counter import conv_flop_count

    return conv_flop_count(list(input), list(kernel), list(output))


def _convolution_backward(
    grad_output: Shape, input: Shape, kernel: Shape, of_input: bool, of_kernel: bool
) -> int:
    from torch.utils.flop_counter import conv_backward_flop

    arguments: list[Any] = [grad_output, input, kernel, None, None, None, None, False, None, 1]
    mask, results = [of_input, of_kernel, False], (input, kernel)
    backward: Any = conv_backward_flop  # torch wraps it: shapes are taken off ``out_val``
    return int(backward(*arguments, mask, out_val=tuple(map(_meta, results))))


def _meta(shape: Shape) -> torch.Tensor:
    return torch.empty(list(shape), device="meta")


def _direct_conv(input: Shape, kernel: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return _convolution(input, kernel, out_shape)


def _direct_conv_backward(
    grad_output: Shape, input: Shape, kernel: Shape, *rest: Any, **_: Any
) -> int:
    return _convolution_backward(grad_output, input, kernel, *rest[-1][:2])


def _dense(weight: Shape, input: Shape, rest: Sequence[Any]) -> list[int]:
    """The shape of the dense kernel, from what follows the tensors of ``layer``."""
    kernel_size, groups = rest[4], rest[7]
    return [weight[0], input[1] // groups, *kernel_size]


def _layer(input: Shape, weight: Shape, *args: Any, out_shape: Any, **_: Any) -> int:
    return _convolution(input, _dense(weight, input, args[3:]), out_shape[0])


def _layer_backward(grad_output: Shape, input: Shape, weight: Shape, *args: Any, **_: Any) -> int:
    mask = args[-1]
    kernel = _dense(weight, input, args[3:])
    return _convolution_backward(grad_output, input, kernel, mask[0], any(mask[1:4]))


def _im2col_conv(_: Shape, weight: Shape, *__: Any, out_shape: Shape, **___: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _im2col_conv_backward(
    grad_output: Shape, _: Shape, weight: Shape, *rest: Any, **__: Any
) -> int:
    of_input, of_weight, *of_rows = rest[-1]
    # One product for the weights, one for the columns.
    products = int(of_weight) + int(of_input or any(of_rows))
    return products * 2 * math.prod(grad_output) * math.prod(weight[1:])


def _nothing(*_: Any, **__: Any) -> int:
    return 0


_FORMULAS = {
    "construct_kernel": _nothing,
    "construct_kernel_backward": _nothing,
    "construct_support": _nothing,
    "direct_conv": _direct_conv,
    "direct_conv_backward": _direct_conv_backward,
    "im2col": _nothing,
    "im2col_backward": _nothing,
    "im2col_conv": _im2col_conv,
    "im2col_conv_backward": _im2col_conv_backward,
    "layer": _layer,
    "layer_backward": _layer_backward,
}


def _register(counter: ModuleType) -> None:
    for name, formula in _FORMULAS.items():
        counter.register_flop_formula(getattr(torch.ops.dcls, name))(formula)


class _Finder(importlib.abc.MetaPathFinder):
    """Registers the formulas when somebody imports torch's counter, which loads much that is slow.

    It steps aside for good at that import.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            loader.exec_module = exec_module
        return spec


if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _Finder())
