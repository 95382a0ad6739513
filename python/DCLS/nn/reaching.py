"""The kernel builders that a layer's ``DCK`` holds, however they are wrapped."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.nn import Module

from DCLS.nn.builders import _ConstructKernel

#: Programs that were recorded from a builder: they build what it built then.
_RECORDED = (torch.jit.ScriptModule, torch.jit.ScriptFunction, torch.fx.GraphModule)


def builders_in(DCK: object) -> list[_ConstructKernel]:
    """Returns the builders in ``DCK``: itself, its modules, or what a function calls."""
    if isinstance(DCK, _ConstructKernel) and not DCK._modules:
        return [DCK]
    return [part for part in _parts(DCK) if isinstance(part, _ConstructKernel)]


def value_of(DCK: object, name: str, own: Any) -> Any:
    """Returns the version or the size that ``DCK`` builds.

    Args:
        DCK: what builds the kernel, or None.
        name: ``version`` or ``dilated_kernel_size``.
        own: the value of the layer. It counts where ``DCK`` has none, or builders with several.

    Raises:
        RuntimeError: a module that wraps the builder has another value: the builder does not see
            what is set there.
    """
    values = {getattr(builder, name) for builder in builders_in(DCK)}
    if len(values) != 1:
        alone = not values and name == "version"
        return getattr(DCK, name, own) if alone else own
    (value,) = values
    if name != "version" and len(value) != len(own):
        return own
    for wrapper in _wrappers(DCK, name):
        if vars(wrapper)[name] not in (value, value[0] if len(set(value)) == 1 else value):
            raise RuntimeError(
                f"{name} is {vars(wrapper)[name]!r} in the {type(wrapper).__name__} around the "
                f"builder, which builds {value!r} and does not see it. Set {name} of the layer"
            )
    return value


def set_value(DCK: Any, name: str, value: Any) -> None:
    """Sets the version or the size of all builders in ``DCK``.

    Raises:
        RuntimeError: ``DCK`` would go on to build something else.
    """
    parts = list(_parts(DCK))
    for part in parts:
        if isinstance(part, _RECORDED):
            raise RuntimeError(
                f"{name} cannot be set: DCK has a {type(part).__name__}, which builds what it was "
                "recorded from. Put a builder in its place"
            )
    builders = [part for part in parts if isinstance(part, _ConstructKernel)]
    values = {getattr(builder, name) for builder in builders}
    if len(values) > 1:
        raise RuntimeError(
            f"{name} cannot be set: the builders in DCK have several, {sorted(values)}. Set that "
            "of each"
        )
    if name != "version" and any(len(size) != len(value) for size in values):
        raise RuntimeError(f"{name} cannot be set: DCK builds kernels with another number of axes")
    for part in [*builders, *_wrappers(DCK, name)]:
        setattr(part, name, value)
    if not builders and name == "version" and hasattr(DCK, name):
        DCK.version = value
        if DCK.version != value:
            raise RuntimeError(f"version cannot be set: DCK keeps {DCK.version!r}")


def _wrappers(DCK: object, name: str) -> list[Module]:
    """Returns the modules around the builders that have a ``name`` of their own."""
    if isinstance(DCK, _ConstructKernel) and not DCK._modules:
        return []
    modules = [part for part in _parts(DCK) if isinstance(part, Module)]
    return [m for m in modules if not isinstance(m, _ConstructKernel) and name in vars(m)]


def _parts(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yields what a callable is made of: itself, its modules, and what it was bound to."""
    seen = set() if seen is None else seen
    if id(value) in seen or hasattr(value, "clamp_parameters"):  # a layer has its own builder
        return
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, Module):
        inner = [*value._modules.values(), *_plain(value)]
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        inner = [value.__self__]
    elif isinstance(value, FunctionType):
        inner = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
    elif isinstance(value, (list, tuple)):
        inner = list(value)
    elif not isinstance(value, _RECORDED):
        inner = _plain(value) if callable(value) and not isinstance(value, type) else []
        if not inner:
            return
    yield value
    for part in inner:
        yield from _parts(part, seen)


def _plain(value: Any) -> list[Any]:
    """Returns the public and private attributes that may hold a callable."""
    kinds = (Module, functools.partial, MethodType, FunctionType, list, tuple)
    return [item for item in getattr(value, "__dict__", {}).values() if isinstance(item, kinds)]


def _is_full(cell: Any) -> bool:
    """Whether a closure has assigned the cell."""
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
