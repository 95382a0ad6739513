"""The DCLS layers of a model, and the parameters that their positions and widths come from."""

from __future__ import annotations

from typing import Any

from torch.nn import Module, Parameter
from torch.nn.utils import parametrize

from DCLS.nn.base import _DclsModule


def dcls_layers(model: object, *, at_least_one: bool = False) -> list[tuple[str, _DclsModule]]:
    """Returns the names and the DCLS layers of a model, each layer once.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: there must be at least one and there is none.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, _DclsModule)]
    if at_least_one and not layers:
        raise ValueError(f"model must have a DCLS layer, got a {type(model).__name__} without one")
    return layers


def called(name: str) -> str:
    """Returns how a message calls the module of this name in a model."""
    return f"model.{name}" if name else "model"


def sources(layer: Module, name: str) -> list[Parameter]:
    """Returns the parameters that ``layer.P`` or ``layer.SIG`` is or is computed from.

    They are those of a parametrization, of ``torch.nn.utils.prune`` and of ``weight_norm``.
    """
    names = (name, f"{name}_orig", f"{name}_g", f"{name}_v")
    found = [layer._parameters.get(each) for each in names]
    if parametrize.is_parametrized(layer, name):
        steps: Any = layer.parametrizations
        found += steps[name].parameters()
    return [parameter for parameter in found if parameter is not None]
