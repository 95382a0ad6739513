"""Edits of parameters that last: of whole ones, of shards, and of those that others compute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils import parametrize, prune

Edit = Callable[[Tensor], object]


def edit(module: Module, name: str, change: Edit, *, exact: bool) -> None:
    """Edits a parameter so that the next forward uses what the edit wrote.

    A parameter that is computed is edited through what it is computed from: the originals of a
    parametrization, of ``torch.nn.utils.prune`` and of ``torch.nn.utils.weight_norm``.

    Args:
        module: the module that has the parameter.
        name: the name of the parameter.
        change: edits in place the tensor that it is given.
        exact: whether a parametrization must give the edited values back. If not, it may change
            them, as ``spectral_norm`` scales a new weight, to others that are finite.

    Raises:
        RuntimeError: the next forward would undo the edit, or use other values.
    """
    hook = hook_that_computes(module, name)
    with torch.no_grad():
        if parametrize.is_parametrized(module, name):
            _edit_computed(module, name, change, exact, None, *_parametrization(module, name))
        elif isinstance(hook, prune.BasePruningMethod):
            change(_lasting(module, f"{name}_orig"))
        elif hook is not None:
            _edit_computed(module, name, change, exact, hook, *_weight_norm(module, hook))
        else:
            change(_lasting(module, name))
    if hook is not None and not is_sharded(getattr(module, f"{name}_orig", None)):
        hook(module, ())  # with gradients, as before a forward


def hook_that_computes(module: Module, name: str) -> Any:
    """Returns the hook before the forward that computes ``name``, if its formula is known."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            computed = hook._tensor_name if _multiplies(type(hook)) else None
        else:  # By its name: the module is deprecated, and may be missing.
            norm = type(hook).__module__ == "torch.nn.utils.weight_norm"
            computed = getattr(hook, "name", None) if norm else None
        if computed == name:
            return hook
    return None


def _multiplies(kind: type[prune.BasePruningMethod]) -> bool:
    """Whether such a hook multiplies by a mask, as that of torch does."""
    base = prune.BasePruningMethod
    return kind.apply_mask is base.apply_mask and kind.__call__ is base.__call__


def _lasting(module: Module, name: str) -> Tensor:
    """Returns a parameter, if nothing computes it anew before a forward."""
    tensor: Tensor | None = module._parameters.get(name, module._buffers.get(name))
    if tensor is None:
        raise RuntimeError(
            f"{name} cannot be edited: it is no parameter but a tensor that something else "
            "computes, as the hook of torch.nn.utils.spectral_norm does. The next forward would "
            "undo the edit"
        )
    if not torch.compiler.is_compiling() and _is_gathered(tensor):
        raise RuntimeError(
            f"{name} cannot be edited while fully_shard has gathered it: the edit would be lost. "
            "Call reshard() of the module that fully_shard was given"
        )
    return tensor


def _is_gathered(tensor: Tensor) -> bool:
    """Whether it is the whole copy of a shard, which fully_shard holds during a forward."""
    states = sys.modules.get("torch.distributed._composable_state")
    mapping: Any = getattr(states, "_module_state_mapping", {})
    for module in list(mapping):
        state = states._get_module_state(module)  # type: ignore[union-attr]
        # Several groups from torch 2.12 on.
        groups = getattr(state, "_fsdp_param_groups", None)
        for group in [getattr(state, "_fsdp_param_group", None)] if groups is None else groups:
            for parameter in getattr(group, "fsdp_params", ()):
                if getattr(parameter, "_unsharded_param", None) is tensor:
                    return True
    return False


Inverse = Callable[[Tensor], Sequence[Tensor]]


def _parametrization(module: Module, name: str) -> tuple[list[Tensor], Inverse]:
    """Returns what the parametrizations of ``name`` compute it from, and their inverse."""
    steps: Any = module.parametrizations[name]  # type: ignore[index]
    names = ["original"] if steps.is_tensor else [f"original{i}" for i in range(steps.ntensors)]

    def inverse(value: Any) -> Sequence[Tensor]:
        for step in reversed(steps):
            if not hasattr(step, "right_inverse"):
                raise RuntimeError(
                    f"{name} cannot be edited: its parametrization {type(step).__name__} does not "
                    "implement right_inverse"
                )
            value = step.right_inverse(value)
        return [value] if steps.is_tensor else value

    return [_lasting(steps, original) for original in names], inverse


def _weight_norm(module: Module, hook: Any) -> tuple[list[Tensor], Inverse]:
    """Returns the same for the ``weight_norm`` that is a hook."""
    originals = [_lasting(module, hook.name + suffix) for suffix in ("_g", "_v")]
    return originals, lambda value: (torch.norm_except_dim(value, 2, hook.dim), value)


def _edit_computed(
    module: Module,
    name: str,
    change: Edit,
    exact: bool,
    hook: Any,
    originals: Sequence[Tensor],
    inverse: Inverse,
) -> None:
    """Edits the value that is computed from ``originals``, and gives these what makes it."""

    def value() -> Tensor:
        if hook is not None:
            hook(module, ())
        computed: Tensor = getattr(module, name)
        return computed

    wanted = value().clone()
    change(wanted)
    before = [original.clone() for original in originals]
    # In their memory: fully_shard and optimizers hold it.
    for original, new in zip(originals, inverse(wanted), strict=True):
        if original.shape != new.shape:
            raise RuntimeError(
                f"{name} cannot be edited: right_inverse gives the shape {tuple(new.shape)}, the "
                f"original has {tuple(original.shape)}"
            )
        original.copy_(new)
    if torch.compiler.is_compiling() or _is_capturing(wanted) or wanted.is_meta:
        return  # The host cannot look at values.
    got, wanted = gather(value()), gather(wanted)
    kept = _are_close(got, wanted) if exact else bool(got.isfinite().all())
    if not kept:
        for original, old in zip(originals, before, strict=True):
            original.copy_(old)
        value()
        raise RuntimeError(
            f"{name} cannot be edited: what computes it does not give the new values back"
        )


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _are_close(got: Tensor, wanted: Tensor) -> bool:
    # The square root leaves room for what rounding makes of norms of long vectors.
    room = torch.finfo(wanted.dtype).eps ** 0.5 if wanted.is_floating_point() else 0.0
    return torch.allclose(got, wanted, rtol=room, atol=room, equal_nan=True)


# ------------------------------------------------------------------------------------------ shards


def is_sharded(tensor: object) -> bool:
    """Whether it is a ``DTensor``: processes hold parts or copies of it."""
    return hasattr(tensor, "device_mesh")


def gather(tensor: Any) -> Tensor:
    """Returns the whole tensor; of a ``DTensor`` all processes of its mesh must ask."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return whole


def on_whole(change: Edit) -> Edit:
    """Returns an edit that gives ``change`` a plain tensor, even where processes hold shards.

    It serves edits that overwrite all values and do not read them. The values are those of the
    first process: the others draw as many random numbers and drop them.
    """

    def edit_whole(tensor: Any) -> None:
        if type(tensor) is Tensor or type(tensor) is Parameter:
            change(tensor)
        elif not tensor.is_meta:
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            change(whole)
            if is_sharded(tensor):
                from torch.distributed.tensor import distribute_tensor

                whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements)
            tensor.copy_(whole)

    return edit_whole


def clamp_rows(P: Tensor, limits: Sequence[tuple[int, int]]) -> None:
    """Clamps each row of ``P`` in place to its limits, without a transfer between processes."""
    if len(set(limits)) == 1:
        P.clamp_(*limits[0])
        return
    check_rows(P, len(limits))
    if type(P) is Tensor or type(P) is Parameter:
        for index, (low, high) in enumerate(limits):
            P[index].clamp_(low, high)
    else:  # A row of a shard is a copy.
        one = (1,) * P.ndim
        lows, highs = (
            torch.cat([P.new_full(one, limit) for limit in ends])
            for ends in zip(*limits, strict=True)
        )
        P.clamp_(lows, highs)


def check_rows(P: Tensor, count: int) -> None:
    """Raises unless ``P`` has a row for each learnable axis."""
    if P.ndim < 2 or P.shape[0] != count:
        raise RuntimeError(
            f"P must have the shape ({count}, ...), one row for each learnable axis, got "
            f"{tuple(P.shape)}. Of a flat shard of FullyShardedDataParallel edit the whole "
            "parameter, in summon_full_params"
        )
