"""Deployment: models without DCLS layers that compute the same."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

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
    convolution says by its method ``folded`` what takes its place.

    Folding is not always faster: a plain convolution multiplies all cells of the kernel. An im2col
    layer between many channels took 124 ms where its folded one took 841. Fold such a layer to
    export it, not for its speed. ``DCLS.freeze`` keeps the layers.

    Args:
        model: any module, which may itself be a DCLS layer.
        inplace: False leaves ``model`` as it is and returns a deep copy, folded. True makes each
            layer itself the plain convolution, whatever refers to it: a list, a closure, or a
            variable outside of the model. That saves the memory of the copy.

    Returns:
        The folded model. With ``inplace`` it is ``model`` itself. Where an error is raised,
        ``model`` is left unchanged.

    Raises:
        TypeError: ``model`` is no module, or a layer has its own ``forward`` or
            ``_conv_forward`` and no ``folded`` beside it. The message names the layer.
        RuntimeError: a layer has forward hooks; or a module holds a function that a copy of the
            model would share, or a bound method, which would still use a layer; or the model cannot
            be copied, as one that holds a tensor with a graph. The message names them.
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
    _refuse_what_would_not_follow(model, plain, inplace)
    if not inplace:
        # Deepcopy takes what the memo holds for a layer, wherever the model refers to it.
        try:
            copied: Module = copy.deepcopy(model, {id(old): new for old, new in plain.items()})
        except RuntimeError as error:
            # Torch copies no tensor that a graph made, as states of spiking or recurrent networks.
            raise RuntimeError(
                "model cannot be copied, perhaps as a module holds a tensor with a graph, such as "
                "a state: reset or detach it first, or fold with inplace=True, which copies "
                f"nothing. {error}"
            ) from error
        return copied
    for layer, new in plain.items():
        become(layer, new)
    return model


def _refuse_what_would_not_follow(
    model: Module, plain: Mapping[Module, Module], inplace: bool
) -> None:
    """Raises if the folded model would still use a DCLS layer.

    A copy shares the functions of the model, and a bound method keeps the function of its class.
    """
    names = {module: name for name, module in model.named_modules()}
    for module, name in names.items():
        # Nothing is left of a layer itself.
        left = not (module in plain or _makes_its_copies(module))
        attributes = vars(module) if left else {}
        for attribute, value in attributes.items():
            for layer, in_function in _held(value, False, set()):
                if layer not in plain or (in_function and inplace):
                    continue
                what = "a function that uses" if in_function else "a bound method of"
                way = "fold(model, inplace=True) folds it" if in_function else "Keep the layer"
                raise RuntimeError(
                    f"{'.'.join(filter(None, ['model', name, attribute]))} has {what} "
                    f"model.{names[layer]}, which would still be a DCLS layer there. {way}"
                )


def _makes_its_copies(module: Module) -> bool:
    """Whether the class says how it is copied, as that of a compiled module does."""
    names = ("__deepcopy__", "__reduce__", "__reduce_ex__")
    return any(getattr(type(module), n, None) is not getattr(object, n, None) for n in names)


def _held(value: Any, in_function: bool, seen: set[int]) -> Iterator[tuple[Module, bool]]:
    """Yields the modules that functions and bound methods in ``value`` hold."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, Module):
        if in_function:
            yield value, True
    elif isinstance(value, FunctionType):
        in_function = True
        inner = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # not assigned yet
                inner.append(cell.cell_contents)
    elif isinstance(value, MethodType):
        owner: Any = value.__self__
        of_module = isinstance(owner, Module)
        if of_module and getattr(Module, value.__func__.__name__, None) is not value.__func__:
            yield owner, False
        elif of_module and in_function:
            yield owner, True
        inner = [] if of_module else [owner]
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = list(value)
    for part in inner:
        yield from _held(part, in_function, seen)


def check_may_become(module: Module, new: Module) -> None:
    """Raises TypeError where Python does not allow what ``become`` does."""
    trial: Module = type(module).__new__(type(module))
    trial.__class__ = type(new)


def become(module: Module, new: Module) -> None:
    """Makes ``module`` itself what ``new`` is, whatever refers to it."""
    # Not a search for what refers to it: closures and lists of lists would escape it.
    module.__class__ = type(new)
    module.__dict__ = new.__dict__
