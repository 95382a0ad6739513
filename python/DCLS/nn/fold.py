"""Deployment: models without DCLS layers that compute the same."""

from __future__ import annotations

import copy

from torch.nn import Module

from DCLS._checks import flag
from DCLS.nn.base import _DclsModule

__all__ = ["fold"]


def fold(model: Module, inplace: bool = False) -> Module:
    """Replaces every DCLS layer of a model by the plain convolution that computes the same.

    The result does not need DCLS: it can be exported, quantised, and loaded where DCLS is not
    installed. Its kernels are dense, of the size ``dilated_kernel_size``. Positions are no longer
    learned, and the layers have no ``P``.

    Each layer is replaced by its ``to_conv()``, which describes device, dtype,
    ``requires_grad`` and ``training``. A layer that is used in several places stays one layer.
    Parametrized layers are folded with the values that the parametrizations give now. Parameters
    that several layers shared become separate ones. A subclass whose ``forward`` does more than the
    convolution, as padding on one side, says by its method ``folded`` what takes its place.

    Args:
        model: any module, which may itself be a DCLS layer.
        inplace: False leaves ``model`` as it is and returns a deep copy, folded. True makes each
            layer itself the plain convolution, whatever refers to it: a list, a closure, or a
            variable outside of the model. That saves the memory of the copy. A bound method
            that was taken off a layer before does not follow.

    Returns:
        The folded model. With ``inplace`` it is ``model`` itself. Where an error is raised,
        ``model`` is left unchanged.

    Raises:
        TypeError: ``model`` is no module, or a layer has its own ``forward`` or
            ``_conv_forward`` and no ``folded`` beside it. The message names the layer.
        RuntimeError: a layer has forward hooks.
        ValueError: a layer cannot build its kernel.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inplace = flag("inplace", inplace)
    plain: dict[Module, Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, _DclsModule):
            try:
                plain[module] = module._fold()
                if inplace:
                    check_may_become(module, plain[module])
            except (TypeError, RuntimeError, ValueError) as error:
                where = f"model.{name}" if name else "model"
                raise type(error)(f"{where} cannot be folded: {error}") from error
    if not inplace:
        # Deepcopy takes what the memo holds for a layer, wherever the model refers to it.
        copied: Module = copy.deepcopy(model, {id(old): new for old, new in plain.items()})
        return copied
    for layer, new in plain.items():
        become(layer, new)
    return model


def check_may_become(module: Module, new: Module) -> None:
    """Raises TypeError where Python does not allow what ``become`` does."""
    trial: Module = type(module).__new__(type(module))
    trial.__class__ = type(new)


def become(module: Module, new: Module) -> None:
    """Makes ``module`` itself what ``new`` is, whatever refers to it."""
    # Not a search for what refers to it: closures and lists of lists would escape it.
    module.__class__ = type(new)
    module.__dict__ = new.__dict__
