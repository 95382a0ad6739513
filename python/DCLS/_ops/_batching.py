"""The batching rule of the operators: what vmap does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: A batching rule, as ``torch.library.register_vmap`` takes it.
Rule = Callable[..., tuple[Any, Any]]


class Batching(NamedTuple):
    """How one call of an operator computes all copies of its problem.

    The copies get a dimension in each tensor argument. Copies may share an argument.
    """

    #: For each tensor argument, which come first, where the dimension goes.
    tensors: tuple[int, ...]
    #: For each result, where it is. Results of an operator with an ``output_mask`` are gradients.
    results: tuple[int, ...]
    #: The arguments whose gradients the results are; None for one that is always there.
    of: tuple[int | None, ...] = ()
    #: Whether it is merged with the dimension in that place. Otherwise it is inserted there.
    merged: bool = True
    #: Place of the number of groups. Each copy has its own groups.
    groups: int | None = None
    #: The arguments and results with items of a batch, which are merged into these where nothing
    #: else has copies.
    items: tuple[int, ...] = ()


def batching_rule(operator: Any, batching: Batching) -> Rule:
    """Returns the batching rule of an operator."""

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        batch, count = info.batch_size, len(batching.tensors)
        if batch == 0:
            return no_copies(operator(*one_copy(in_dims, args)))
        wanted = [True] * len(batching.results)
        if batching.of:
            wanted = [
                mask and (place is None or args[place] is not None)
                for mask, place in zip(args[-1], batching.of, strict=True)
            ]
        places, results, given = batching.tensors, batching.results, list(args)
        moved: Sequence[int] = range(count)
        if _only_items(batching, in_dims, wanted):
            moved, places, results = batching.items, (0,) * count, (0,) * len(results)
        elif batching.groups is not None:
            given[batching.groups] = given[batching.groups] * batch
        for i in moved:
            given[i] = _with_copies(args[i], in_dims[i], batch, places[i], batching.merged)
        outputs = operator(*given)
        if isinstance(outputs, Tensor):
            return _apart(outputs, results[0], batch, batching.merged), 0
        return (
            tuple(
                _apart(output, at, batch, batching.merged) if present else output
                for output, at, present in zip(outputs, results, wanted, strict=True)
            ),
            tuple(0 if present else None for present in wanted),
        )

    return rule


def _only_items(batching: Batching, in_dims: Sequence[Any], wanted: Sequence[bool]) -> bool:
    """Whether the copies differ in items of a batch only, and so do all results."""
    others = [i for i in range(len(batching.tensors)) if i not in batching.items]
    if not batching.items or any(in_dims[i] is not None for i in others):
        return False
    return not batching.of or all(
        place in batching.items
        for place, present in zip(batching.of, wanted, strict=True)
        if present
    )


def _with_copies(
    tensor: Tensor | None, dim: int | None, batch: int, at: int, merged: bool
) -> Tensor | None:
    """Gives a tensor the dimension of the copies; those of ``merged`` come one by one."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(at).expand(*tensor.shape[:at], batch, *tensor.shape[at:])
    else:
        tensor = tensor.movedim(dim, at)
    return tensor.flatten(at, at + 1) if merged else tensor


def _apart(tensor: Tensor, at: int, batch: int, merged: bool) -> Tensor:
    """The converse, with the copies first."""
    if merged:
        tensor = tensor.unflatten(at, (batch, tensor.shape[at] // batch))
    return tensor.movedim(at, 0)


def one_copy(in_dims: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Returns arguments as those of each copy are, where there is none: all zeros."""
    return [
        arg.new_zeros((*arg.shape[:dim], *arg.shape[dim + 1 :]))
        if isinstance(arg, Tensor) and dim is not None
        else arg
        for arg, dim in zip(args, in_dims, strict=True)
    ]


def no_copies(results: Any) -> tuple[Any, Any]:
    """Returns no copies of results like these."""
    if isinstance(results, Tensor):
        return results.new_empty((0, *results.shape)), 0
    none = tuple(result.new_empty((0, *result.shape)) for result in results)
    return none, (0,) * len(none)


def one_by_one(operator: Any) -> Rule:
    """Returns a batching rule that calls the operator for each copy."""

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            return no_copies(operator(*one_copy(in_dims, args)))
        copies = [
            operator(
                *(
                    arg.select(dim, index) if isinstance(arg, Tensor) and dim is not None else arg
                    for arg, dim in zip(args, in_dims, strict=True)
                )
            )
            for index in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(results) for results in zip(*copies, strict=True))
        return stacked, (0,) * len(stacked)

    return rule
