"""Parameter groups: positions and widths with rates of their own and without decay."""

from __future__ import annotations

import fnmatch
import importlib
import math
import re
from collections.abc import Callable, Collection, Iterator
from numbers import Real
from typing import Any

from torch.nn import Module, ModuleDict, ModuleList, Parameter, Sequential

from DCLS._checks import shown
from DCLS.toolkit._layers import dcls_layers, sources

__all__ = ["param_groups"]

#: Parts of names that wrappers add: torch.compile, FSDP and activation checkpointing.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

#: Modules that only hold others.
_CONTAINERS = (Sequential, ModuleList, ModuleDict)


def param_groups(
    model: Module,
    lr: float,
    weight_decay: float = 0.0,
    position_lr_scale: float = 5.0,
    width_lr_scale: float = 5.0,
    no_weight_decay_list: Collection[str] = (),
    layer_decay: float | Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """Returns parameter groups for any optimizer.

    The groups are called ``positions``, ``widths``, ``no_decay`` and ``decay``, each with its
    ``params``, ``lr``, ``weight_decay`` and ``name``; empty ones are left out. Positions and widths
    have rates of their own and no weight decay. For the others the rule is that of timm: no decay
    for parameters with at most one axis, for names that end in ``.bias``, and for those in
    ``no_weight_decay_list`` or in the ``no_weight_decay()`` of the model. Frozen parameters are
    left out. A parameter that layers share is there once, by its first name.

    Each group has its whole ``lr`` and no ``lr_scale``, so that the schedulers of torch and of timm
    keep the ratios. Parameters that a parametrization, ``prune`` or ``weight_norm`` makes of ``P``
    or ``SIG`` count as these.

    Args:
        model: any module, also one that ``torch.compile``, DDP or an average of
            ``torch.optim.swa_utils`` wraps; after ``fully_shard``.
        lr: learning rate, not negative.
        weight_decay: decay of the group ``decay``, not negative; default 0.
        position_lr_scale: learning rate of positions over ``lr``; default 5, as in the papers.
        width_lr_scale: the same of widths; default 5.
        no_weight_decay_list: names of parameters without decay, with ``*`` and ``?`` as in a shell.
        layer_decay: None (default); or a factor from 0, excluded, to 1: the last block of the model
            has the rate ``lr``, each one before it ``layer_decay`` times that of the next. Or a
            function that returns for the name of a parameter its own factor. Positions and widths
            are scaled on top of that, so that their ratio to the weights of their layer stays. The
            blocks are those of the model's ``group_matcher``, which the models of timm have;
            without one they are the largest modules that are no Sequential, ModuleList or
            ModuleDict, in their order. Names of groups then end in the number of the block, or in
            the factor.

    Returns:
        A list of dicts.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is negative or not finite, or ``layer_decay`` is not in (0, 1].

    Example:
        >>> optimizer = torch.optim.AdamW(DCLS.param_groups(model, lr=1e-3, weight_decay=0.05))
    """
    layers = dcls_layers(model)
    lr, weight_decay, position_lr_scale, width_lr_scale = (
        not_negative(name, value)
        for name, value in (
            ("lr", lr),
            ("weight_decay", weight_decay),
            ("position_lr_scale", position_lr_scale),
            ("width_lr_scale", width_lr_scale),
        )
    )
    scales = {"positions": position_lr_scale, "widths": width_lr_scale}
    kinds = {id(p): "positions" for _, layer in layers for p in sources(layer, "P")}
    kinds |= {id(p): "widths" for _, layer in layers for p in sources(layer, "SIG")}
    core = _unwrapped(model)
    names: dict[int, list[str]] = {}
    for name, parameter in core.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(_WRAPPERS.sub("", name))
    patterns = _names(no_weight_decay_list, core)
    factor_of = _factors(core, layer_decay)
    groups: dict[tuple[str, object], dict[str, Any]] = {}
    for parameter in core.parameters():
        if not parameter.requires_grad:
            continue
        own = names[id(parameter)]
        kind = kinds.get(id(parameter)) or _kind(parameter, own, patterns)
        block, factor = factor_of(own[0])
        group = {
            "params": [],
            "lr": lr * factor * scales.get(kind, 1.0),
            "weight_decay": weight_decay if kind == "decay" else 0.0,
            "name": kind if layer_decay is None else f"{kind}.{block}",
        }
        groups.setdefault((kind, block), group)["params"].append(parameter)
    order = ["positions", "widths", "no_decay", "decay"]
    return sorted(groups.values(), key=lambda group: order.index(group["name"].partition(".")[0]))


def not_negative(name: str, value: object) -> float:
    """Returns ``value`` if it is a finite real number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {shown(value)}")
    return number


def _unwrapped(model: Module) -> Module:
    """Returns the module in wrappers that have nothing else: DDP, torch.compile, averages."""
    for name in ("module", "_orig_mod"):
        inner = model._modules.get(name)
        alone = inner is not None and not model._parameters and len(model._modules) == 1
        if inner is not None and alone and not hasattr(type(model), "no_weight_decay"):
            return _unwrapped(inner)
    return model


def _names(given: object, model: Module) -> list[str]:
    """Returns the patterns of names without decay, those of the model included."""
    if isinstance(given, str) or not isinstance(given, Collection):
        raise TypeError(f"no_weight_decay_list must be a list of names, got {shown(given)}")
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"no_weight_decay_list must hold names, got {shown(name)}")
    own: Callable[[], Collection[str]] | None = getattr(model, "no_weight_decay", None)
    return [*given, *(own() if own is not None else ())]


def _kind(parameter: Parameter, names: list[str], patterns: list[str]) -> str:
    free = parameter.ndim <= 1 or names[0].endswith(".bias") or names[0] == "bias"
    listed = any(fnmatch.fnmatchcase(n, pattern) for n in names for pattern in patterns)
    return "no_decay" if free or listed else "decay"


def _factors(model: Module, layer_decay: object) -> Callable[[str], tuple[object, float]]:
    """Returns what gives for the name of a parameter its block and the factor of its rate."""
    if layer_decay is None:
        return lambda _: ("", 1.0)
    if callable(layer_decay):

        def asked(name: str) -> tuple[object, float]:
            factor = not_negative(f"layer_decay({name!r})", layer_decay(name))
            return factor, factor

        return asked
    decay = not_negative("layer_decay", layer_decay)
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay must be greater than 0 and at most 1, got {layer_decay}")
    blocks = _blocks(model)
    last = max(blocks.values(), default=0)

    def by_block(name: str) -> tuple[object, float]:
        block = blocks.get(name, last)
        return block, decay ** (last - block)

    return by_block


def _blocks(model: Module) -> dict[str, int]:
    """Returns the number of the block of each parameter, counted from the input."""
    matcher: Callable[..., Any] | None = getattr(model, "group_matcher", None)
    if matcher is not None:
        group_parameters = importlib.import_module("timm.models").group_parameters
        blocks = group_parameters(model, matcher(coarse=False), reverse=True)
        return {_WRAPPERS.sub("", name): number for name, number in blocks.items()}
    numbers: dict[str, int] = {}
    for number, (prefix, block) in enumerate(_outermost(model)):
        for name, _ in block.named_parameters(remove_duplicate=False):
            numbers.setdefault(_WRAPPERS.sub("", prefix + name), number)
    # The model's own parameters, such as the embedding of a position, belong to the input.
    return {**{name: 0 for name, _ in model.named_parameters(recurse=False)}, **numbers}


def _outermost(module: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """Yields the largest modules that have parameters and are no containers."""
    for name, child in module.named_children():
        if isinstance(child, _CONTAINERS):
            yield from _outermost(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}.", child
