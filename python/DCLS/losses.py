"""Losses on the positions of elements."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from DCLS._checks import choice
from DCLS.nn.axes import as_floats
from DCLS.nn.editing import gather
from DCLS.toolkit._layers import dcls_layers

__all__ = ["repulsion"]

#: Most pairs of elements that are held at a time.
_PAIRS = 1 << 18


def repulsion(model: Module, square: Literal["each", "mean"] = "each") -> Tensor:
    """Returns the repulsive loss, which pushes apart elements that are nearer than a grid step.

    For the positions of a layer, ``C`` kernels of ``K`` elements, it is ``(2 sum relu(1 - |p_i -
    p_j|) / (K (K - 1) C)) ** 2``. The sum is over the pairs of elements of a kernel, and ``|.|`` is
    the Euclidean distance. The result is the mean over the layers. It comes from arXiv 2112.03740,
    where it is added to the loss from epoch 20 on.

    Positions that layers share count once. Layers with one element have no pairs and do not count.
    Elements at the very same position do not push each other: they have no direction. The memory
    grows as the elements, not as their pairs. Positions of less than 32 bits are taken as float32.
    Positions that processes share as ``DTensor`` are gathered: all processes must call this.

    Args:
        model: any module with DCLS layers.
        square: ``each`` (default) squares the term of each layer before the mean. ``mean`` squares
            the mean, as the trainers of the authors do. For one layer both are the same.

    Returns:
        A tensor without axes, differentiable in the positions; 0 if no layer has pairs.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model has no DCLS layer, or ``square`` is unknown.

    Example:
        >>> loss = cross_entropy(model(x), y) + DCLS.losses.repulsion(model)
    """
    choice("square", square, ("each", "mean"))
    sets: list[Tensor] = []
    for _, layer in dcls_layers(model, at_least_one=True):
        P = layer.P
        # By identity: torch.compile takes no id of a tensor, and tensors compare by element.
        if not any([P is other for other in sets]):  # noqa: C419
            sets.append(P)
    terms = [_crowding(gather(P)) for P in sets if P.shape[-1] > 1]
    if not terms:
        return 0 * as_floats(gather(sets[0]), torch.get_default_dtype()).sum()
    near = torch.stack([term.to(terms[0].device) for term in terms])
    return near.square().mean() if square == "each" else near.mean().square()


def _crowding(P: Tensor) -> Tensor:
    """Returns the mean of ``relu(1 - |p_i - p_j|)`` over the pairs of all kernels."""
    P = as_floats(P, torch.float32)
    P = P.to(torch.promote_types(P.dtype, torch.float32)).flatten(1, -2)
    kernels, count = P.shape[1:]
    if kernels * count * count <= _PAIRS:
        total = _near(P, 0, count)
    else:
        some = max(1, _PAIRS // (count * count))  # kernels at a time
        rows = min(count, max(1, _PAIRS // count))  # elements of them
        total = P.new_zeros(())
        for kernel in range(0, kernels, some):
            for row in range(0, count, rows):
                # The backward pass computes the distances again.
                part = P[:, kernel : kernel + some]
                total = total + checkpoint(
                    _near, part, row, rows, use_reentrant=False, preserve_rng_state=False
                )
    return 2 * total / (count * (count - 1) * max(kernels, 1))


def _near(P: Tensor, start: int, rows: int) -> Tensor:
    """Returns the sum over pairs of one of ``rows`` elements from ``start`` and a later one."""
    squares = [(axis[:, start : start + rows, None] - axis[:, None, start:]).square() for axis in P]
    # The smallest one keeps the derivative of the root finite where two elements meet: it is 0.
    smallest = torch.finfo(P.dtype).tiny
    distance = functools.reduce(torch.add, squares).clamp_min(smallest).sqrt()
    # Above the diagonal: the distance of an element to itself is no pair's.
    near: Tensor = (1 - distance).relu().triu(1).sum()
    return near
