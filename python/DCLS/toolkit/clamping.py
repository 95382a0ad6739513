"""Positions stay in the kernel, and those that left it are found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from DCLS.toolkit._layers import called, dcls_layers, sources

__all__ = ["clamp_", "clamp_after_step", "lost_elements"]


def clamp_(model: Module) -> None:
    """Clamps the positions of all DCLS layers of a model in place, see ``clamp_parameters``.

    Positions that layers share are clamped once. A model without DCLS layers stays as it is.

    Args:
        model: any module, which may itself be a DCLS layer.

    Raises:
        TypeError: ``model`` is no module.
        RuntimeError: the next forward of a layer would undo the edit. The message names the layer.
            Those before it are clamped.
    """
    done: list[tuple[Tensor, Any]] = []
    for name, layer in dcls_layers(model):
        P, limits = layer._parameters.get("P"), layer._position_limits()
        # By identity: torch.compile takes no id of a tensor, and tensors compare by element.
        if P is not None:
            if any([P is other and limits == its for other, its in done]):  # noqa: C419
                continue
            done.append((P, limits))
        try:
            layer.clamp_parameters()
        except RuntimeError as error:
            raise RuntimeError(f"{called(name)} cannot be clamped: {error}") from error


def clamp_after_step(optimizer: torch.optim.Optimizer, model: Module) -> RemovableHandle:
    """Makes each step of an optimizer end with ``DCLS.clamp_(model)``.

    A step that a gradient scaler leaves out clamps nothing. Copies of the model, such as an
    average, are not clamped: an average of positions in the kernel is in the kernel.

    Args:
        optimizer: an optimizer that has positions of the model, or a wrapper that has it as
            ``optimizer``, as those of accelerate and Lightning.
        model: any module with DCLS layers.

    Returns:
        A handle. Its ``remove()`` ends the clamping.

    Raises:
        TypeError: ``optimizer`` is no optimizer, or ``model`` no module.
        ValueError: the model has no DCLS layer, or the optimizer has none of its positions.

    Example:
        >>> optimizer = torch.optim.AdamW(DCLS.param_groups(model, lr=1e-3))
        >>> handle = DCLS.clamp_after_step(optimizer, model)
    """
    layers = dcls_layers(model, at_least_one=True)
    for name in ("optimizer", "_base_optimizer", "base_optimizer"):
        inner = getattr(optimizer, name, None)
        if isinstance(inner, torch.optim.Optimizer):
            return clamp_after_step(inner, model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    steps = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in steps for _, layer in layers for p in sources(layer, "P")):
        raise ValueError(
            "optimizer must have positions of the model, got one that has no P of it. Make it from "
            "the parameters that the model has now, and after fully_shard"
        )
    return optimizer.register_step_post_hook(lambda *_: clamp_(model))


def lost_elements(model: Module) -> dict[str, Tensor]:
    """Finds the elements that left their kernel: all their gradients are zero for good.

    An element is lost where no grid point of the kernel is within its reach, which is that of the
    version and the width. The logger ``DCLS`` reports at level DEBUG, once, that a layer has some.
    ``DCLS.clamp_`` brings them back.

    Args:
        model: any module. A layer on a GPU is waited for.

    Returns:
        For each layer that has lost elements, by its name in the model, a bool tensor of the shape
        of ``P`` without its first axis; empty if there are none.

    Raises:
        TypeError: ``model`` is no module.
    """
    lost = {name: layer._lost_elements() for name, layer in dcls_layers(model)}
    return {name: mask for name, mask in lost.items() if mask.any()}
