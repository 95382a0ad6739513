"""Models with whole positions, as hardware and tables of delays take them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from DCLS._types import Version
from DCLS.nn.base import _DclsModule
from DCLS.nn.editing import clamp_rows, edit, hook_that_computes, is_sharded
from DCLS.toolkit._layers import called, dcls_layers, sources

__all__ = ["integer_positions", "round_"]


@contextmanager
def integer_positions(model: Module) -> Iterator[None]:
    """Lets every DCLS layer of a model have whole positions and no widths for a while.

    Inside, positions are clamped to the kernel and then rounded, halves to the even number, and the
    interpolation is the narrowest: ``v1``, or ``v0`` for layers of this version, whose rows have
    another order. Neither has widths, ``SIG`` is not used, and each element is one cell of the
    kernel with its weight. ``DCLS.fold`` and ``state_dict()`` see the same.

    On leaving, also by an exception, all layers have the same parameters as before, with the same
    bits and ``requires_grad``, and the same version. A ``P`` of the layer's own is not edited but
    replaced for the while: optimizers and other references keep the one with the trained positions.
    One that is a DTensor or is computed by a parametrization, ``prune`` or ``weight_norm`` is
    edited and restored. Steps of an optimizer inside do not train positions.

    Args:
        model: any module. One that ``fully_shard`` was given is resharded before and after.

    Raises:
        TypeError: ``model`` is no module.
        RuntimeError: a layer's positions or version cannot be set; the message names the layer, and
            the model is unchanged.

    Example:
        >>> with torch.no_grad(), DCLS.integer_positions(model):
        ...     accuracy = evaluate(model)
    """
    layers = dcls_layers(model)
    with ExitStack() as undo:
        _reshard(model)
        undo.callback(_reshard, model)
        held: list[tuple[Tensor, Any, Parameter]] = []
        for name, layer in layers:
            _put_in(name, layer, undo, held)
        yield


def round_(model: Module) -> None:
    """Rounds the positions of all DCLS layers in place, for good, as ``integer_positions``.

    ``version`` becomes ``v1``, or stays ``v0``. ``SIG`` stays, unused, so that state dicts keep
    their keys.

    Args:
        model: any module. One that ``fully_shard`` was given is resharded before.

    Raises:
        TypeError: ``model`` is no module.
        RuntimeError: a layer's positions or version cannot be set; the message names the layer, and
            the model is unchanged.
    """
    with integer_positions(model):
        pass  # raises where a layer cannot be rounded, and leaves the model as it was
    for _, layer in dcls_layers(model):
        edit(layer, "P", _rounding(layer), exact=True)
        layer.version = _narrowest(layer)


def _put_in(
    name: str, layer: _DclsModule, undo: ExitStack, held: list[tuple[Tensor, Any, Parameter]]
) -> None:
    """Gives a layer whole positions until ``undo`` is closed."""
    version, rounding, limits = layer.version, _rounding(layer), layer._position_limits()
    own = layer._parameters.get("P")
    if own is None or is_sharded(own):
        before = [(parameter, parameter.detach().clone()) for parameter in sources(layer, "P")]
        undo.callback(_restore, layer, before)
        try:
            edit(layer, "P", rounding, exact=True)
        except RuntimeError as error:
            raise RuntimeError(f"{called(name)} cannot be rounded: {error}") from error
    else:
        # One for all layers that share it, which a fold or a copy then keeps.
        whole = next((w for P, its, w in held if P is own and its == limits), None)
        if whole is None:
            values = own.detach().clone()
            rounding(values)
            whole = Parameter(values, own.requires_grad)
            held.append((own, limits, whole))
        undo.callback(layer._parameters.__setitem__, "P", own)
        layer._parameters["P"] = whole
    undo.callback(setattr, layer, "version", version)
    try:
        layer.version = _narrowest(layer)
    except RuntimeError as error:
        raise RuntimeError(f"{called(name)} cannot be rounded: {error}") from error


def _narrowest(layer: _DclsModule) -> Version:
    return "v0" if layer.version == "v0" else "v1"


def _rounding(layer: _DclsModule) -> Any:
    """Returns the edit that clamps and rounds the positions of a layer."""
    limits = layer._position_limits()

    def clamp_and_round(P: Tensor) -> None:
        clamp_rows(P, limits)
        if P.is_floating_point():
            P.round_()

    return clamp_and_round


@torch.no_grad()
def _restore(layer: Module, before: list[tuple[Parameter, Tensor]]) -> None:
    for parameter, values in before:
        parameter.copy_(values)
    hook = hook_that_computes(layer, "P")
    if hook is not None and not any(is_sharded(parameter) for parameter, _ in before):
        with torch.enable_grad():
            hook(layer, ())


def _reshard(model: Module) -> None:
    """Frees what ``fully_shard`` has gathered: the next forward gathers the edited positions."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    kind: type[Any] | None = getattr(fsdp, "FSDPModule", None)
    for module in model.modules():
        if kind is not None and isinstance(module, kind):
            module.reshard()
