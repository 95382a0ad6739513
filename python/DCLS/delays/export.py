"""Delay layers for other simulators and for hardware: plain arrays, and NIR graphs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from DCLS._checks import choice, integer, shown
from DCLS.delays.delay import Delay
from DCLS.delays.linear import DelayLinear

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Connections", "nir_node", "to_arrays", "to_nir"]


class Connections(NamedTuple):
    """Connections of a layer, an entry of each array for one: numpy arrays of one axis.

    Attributes:
        pre: number of the input, int64.
        post: number of the output, int64.
        weight: its weight, in the dtype of the layer (float32 for 16 bits).
        delay: its delay in whole steps, int64, from 0 to ``max_delay``.
    """

    pre: np.ndarray
    post: np.ndarray
    weight: np.ndarray
    delay: np.ndarray


def to_arrays(layer: DelayLinear | Delay) -> Connections:
    """Returns the connections of a layer as arrays, with whole delays.

    Delays are clamped to ``[0, max_delay]`` and rounded, halves as ``DCLS.round_`` rounds them. The
    layer is left as it is. In such a table each value arrives once with its weight, as the layer
    computes in ``DCLS.integer_positions``. Connections that ``mask`` leaves out are not in it. A
    bias is not in it either: see ``layer.bias``.

    Args:
        layer: a causal ``DelayLinear`` or ``Delay``. Load the state dict of a trained ``Dcls1d``
            into a ``DelayLinear``.

    Returns:
        ``(pre, post, weight, delay)``, ordered by ``post``, then ``pre``: ``out_features *
        in_features * count`` entries, fewer with a mask.

    Raises:
        TypeError: ``layer`` is another module.
        ValueError: it is not causal, or a delay or a weight is not finite.
    """
    weight, delays = _whole(layer)
    with torch.device("cpu"):  # whatever the default is
        if isinstance(layer, Delay):
            numbers = torch.arange(layer.channels)
            return _arrays(numbers, numbers, weight.flatten(), delays.flatten())
        outputs, inputs, count = weight.shape
        every = _of_connections(layer, delays)
        post = torch.arange(outputs)[:, None, None].expand(outputs, inputs, count)
        pre = torch.arange(inputs)[None, :, None].expand(outputs, inputs, count)
        here = torch.ones(outputs, inputs, dtype=torch.bool)
        here = here if layer.mask is None else layer.mask.cpu()
        return _arrays(pre[here], post[here], weight[here], every[here])


def to_nir(
    model_part: nn.Module,
    *,
    dt: float = 1.0,
    form: str = "delay",
    steps: int | None = None,
    other: Callable[[nn.Module], Any] | None = None,
) -> Any:
    """Returns delay layers, and what is between them, as a graph of ``nir``.

    Whole delays as ``to_arrays`` has them become ``nir.Delay``, in units of ``dt``. What that takes
    depends on the layer, with ``I`` inputs, ``O`` outputs, ``K = count`` and ``S = max_delay + 1``:

    - ``Delay``: a ``nir.Delay`` of the channels.
    - ``axonal``: a ``Linear`` ``(I K, I)`` that copies, left out for ``K = 1``, a ``Delay`` of ``I
      K``, and a ``Linear`` ``(O, I K)``.
    - ``dendritic``: a ``Linear`` ``(O K, I)``, a ``Delay`` of ``O K``, and a ``Linear`` ``(O, O
      K)`` that adds, left out for ``K = 1``.
    - ``synaptic``: each input is delayed by each delay that one of its connections has. With ``n``
      such pairs, at most ``I`` times the smaller of ``O K`` and ``S``: a ``Linear`` ``(n, I)``, a
      ``Delay`` of ``n``, and a ``Linear`` ``(O, n)``.

    A bias makes the last of them an ``Affine``; where a ``Delay`` is the last, an ``Affine`` with
    ones follows.

    Args:
        model_part: a ``DelayLinear``, a ``Delay``, a ``torch.nn.Linear``, or a
            ``torch.nn.Sequential`` of these and of what ``other`` takes.
        dt: duration of a step in the graph's unit of time; default 1.
        form: ``delay`` (default), or ``conv``: a ``DelayLinear`` or ``Delay`` becomes one
            ``nir.Conv1d`` along time, ``(O, I, 2 S - 1)``. Its padding is the same on both sides,
            so that the last ``S - 1`` points are zeros.
        steps: length of the sequences, which ``form="conv"`` needs; else None (default).
        other: a function that returns the node of a module that is none of these, or None.

    Returns:
        A ``nir.NIRGraph`` from ``input`` to ``output``, which ``nir.write`` takes.

    Raises:
        ModuleNotFoundError: ``nir`` is not installed.
        TypeError: an argument has a wrong type, or nothing is known of a module.
        ValueError: an argument is out of its range, a layer is not causal, or a delay or a weight
            is not finite.
    """
    if not isinstance(model_part, nn.Module):
        raise TypeError(f"model_part must be a torch.nn.Module, got {type(model_part).__name__}")
    if other is not None and not callable(other):
        raise TypeError(f"other must be a function or None, got {type(other).__name__}")
    nir = _nir()
    dt, form = _duration(dt), choice("form", form, ("delay", "conv"))
    if (steps is None) == (form == "conv"):
        raise ValueError(f"steps must be given for form='conv' only, got {steps} for {form!r}")
    length = None if steps is None else integer("steps", steps, 1)
    nodes: dict[str, Any] = {}
    for name, module in _in_turn(model_part, ""):
        found = _nodes(module, dt, length)
        if found is None and other is not None:
            node = other(module)
            found = None if node is None else [node]
        if found is None:
            raise TypeError(
                f"{name or 'model_part'} is a {type(module).__name__}, which has no node here; "
                "other can give one"
            )
        for number, node in enumerate(found):
            part = name or type(module).__name__
            part = f"{part}_{number}" if len(found) > 1 else part
            nodes[_unused(part, nodes)] = node
    if not nodes:
        raise ValueError("model_part must have a layer, got an empty Sequential")
    every = list(nodes.values())
    first, last = every[0].input_type["input"], every[-1].output_type["output"]
    graph = {"input": nir.Input(first), **nodes, "output": nir.Output(last)}
    names = list(graph)
    return nir.NIRGraph(graph, list(pairwise(names)))


def nir_node(module: nn.Module, *, dt: float = 1.0) -> Any:
    """Returns the node of one delay layer, for exporters that ask for it module by module.

    ``nirtorch.extract_nir_graph`` takes such a function. So does, through it, snnTorch, whose own
    mapper is not open to new layers:

        >>> from snntorch.export_nir import _extract_snntorch_module
        >>> mapper = lambda module: nir_node(module) or _extract_snntorch_module(module)
        >>> graph = nirtorch.extract_nir_graph(model, mapper, sample)

    Args:
        module: any module.
        dt: duration of a step in the graph's unit of time; default 1.

    Returns:
        A ``nir.Delay``, or for a ``DelayLinear`` the ``nir.NIRGraph`` that ``to_nir`` makes; None
        for a module that is no delay layer.

    Raises:
        ModuleNotFoundError: ``nir`` is not installed.
        TypeError: ``dt`` is no number.
        ValueError: ``dt`` is not positive, or the layer cannot be exported, see ``to_nir``.
    """
    if not isinstance(module, (Delay, DelayLinear)):
        return None
    nodes = _nodes(module, _duration(dt), None)
    return nodes[0] if nodes and isinstance(module, Delay) else to_nir(module, dt=dt)


def _unused(name: str, nodes: dict[str, Any]) -> str:
    """Returns ``name``, or with a number behind it where a node has it: a module may come twice."""
    taken, number, free = {*nodes, "input", "output"}, 1, name
    while free in taken:
        free, number = f"{name}_again{number}", number + 1
    return free


def _whole(layer: object) -> tuple[Tensor, Tensor]:
    """Returns the weights and the whole delays of a layer, on the CPU."""
    if not isinstance(layer, (Delay, DelayLinear)):
        raise TypeError(f"layer must be a DelayLinear or a Delay, got {type(layer).__name__}")
    if not layer.causal:
        raise ValueError("layer must be causal, got one that sees later inputs")
    weight, P = layer._used_weight().detach().cpu(), layer.positions().detach().cpu()[0]
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if not (weight.isfinite().all() and P.isfinite().all()):
        raise ValueError("layer must have finite weights and delays")
    # As round_ does: the position is rounded, not the delay, where a half lies between two steps.
    last = layer._last_position("delays")
    return weight, last - P.clamp(last - layer.max_delay, last).round().long()


def _of_connections(layer: DelayLinear, delays: Tensor) -> Tensor:
    """Gives the delays the shape of ``weight``."""
    axis = {"axonal": 0, "dendritic": 1}.get(layer.sharing)
    return delays if axis is None else delays.unsqueeze(axis).expand(layer.weight.shape)


def _arrays(pre: Tensor, post: Tensor, weight: Tensor, delay: Tensor) -> Connections:
    return Connections(*(t.flatten().numpy() for t in (pre, post, weight, delay)))


def _nir() -> Any:
    try:
        return importlib.import_module("nir")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'DCLS.delays.to_nir needs nir. Install it with: pip install "DCLS[nir]"',
            name=error.name,
        ) from None


def _duration(dt: object) -> float:
    if isinstance(dt, bool) or not isinstance(dt, Real):
        raise TypeError(f"dt must be a number, got {shown(dt)}")
    try:
        seconds = float(dt)
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds < math.inf:
        raise ValueError(f"dt must be finite and positive, got {shown(dt)}")
    return seconds


def _in_turn(module: nn.Module, name: str) -> Any:
    """Yields the modules of a Sequential, those inside it included."""
    if isinstance(module, nn.Sequential):
        for child, inner in module._modules.items():  # also those that come again
            yield from _in_turn(inner, f"{name}_{child}" if name else child)
    else:
        yield name, module


def _nodes(module: nn.Module, dt: float, length: int | None) -> list[Any] | None:
    """Returns the nodes of a module, one after the other; None for one that is not known.

    With the length of the sequences they are convolutions along time.
    """
    if isinstance(module, nn.Linear):
        weight = module.weight.detach().cpu()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return [_linear(weight, module.bias)]
    if not isinstance(module, (Delay, DelayLinear)):
        return None
    weight, delays = _whole(module)
    with torch.device("cpu"):  # whatever the default is
        return _delay_nodes(module, weight, delays, dt, length)


def _delay_nodes(
    module: Delay | DelayLinear, weight: Tensor, delays: Tensor, dt: float, length: int | None
) -> list[Any]:
    if length is not None:
        return [_conv(module, weight, delays, length)]

    def delay(steps: Tensor) -> Any:  # in float64: the default dtype may not hold the steps
        return _nir().Delay(delay=(steps.double() * dt).float().numpy())

    if isinstance(module, Delay):
        return [delay(delays.flatten())]
    outputs, inputs, count = weight.shape
    if module.sharing == "axonal":
        before = torch.eye(inputs, dtype=weight.dtype).repeat_interleave(count, 0)
        after, steps = weight.flatten(1), delays.flatten()
    elif module.sharing == "dendritic":
        before = weight.transpose(1, 2).flatten(0, 1)
        after = torch.eye(outputs, dtype=weight.dtype).repeat_interleave(count, 1)
        steps = delays.flatten()
    else:
        before, steps, after = _pairs(module, weight, delays)
    nodes = [delay(steps)]
    if module.sharing != "axonal" or count > 1:
        nodes.insert(0, _linear(before, None))
    if module.sharing != "dendritic" or count > 1 or module.bias is not None:
        nodes.append(_linear(after.to(weight.dtype), module.bias))
    return nodes


def _pairs(layer: DelayLinear, weight: Tensor, delays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns which inputs are delayed, by how much, and the weights from there."""
    outputs, inputs = weight.shape[:2]
    numbers = torch.arange(inputs)[None, :, None] * (layer.max_delay + 1) + delays
    here = torch.ones(outputs, inputs, 1, dtype=torch.bool)
    here = (here if layer.mask is None else layer.mask.cpu().unsqueeze(-1)).expand_as(numbers)
    used, column = numbers[here].unique(return_inverse=True)
    pre, steps = used // (layer.max_delay + 1), used % (layer.max_delay + 1)
    before = torch.nn.functional.one_hot(pre, inputs).to(weight.dtype)
    rows = torch.arange(outputs)[:, None, None].expand_as(numbers)[here]
    after = weight.new_zeros(outputs, len(used))
    after.index_put_((rows, column), weight[here], accumulate=True)
    return before, steps, after


def _linear(weight: Tensor, bias: Tensor | None) -> Any:
    nir = _nir()
    if bias is None:
        return nir.Linear(weight=weight.numpy())
    return nir.Affine(weight=weight.numpy(), bias=bias.detach().cpu().to(weight.dtype).numpy())


def _conv(layer: DelayLinear | Delay, weight: Tensor, delays: Tensor, length: int) -> Any:
    """Returns the convolution along time whose padding is the same on both sides."""
    if isinstance(layer, Delay):  # nir takes the inputs of a group for all of them
        weight = torch.eye(layer.channels, dtype=weight.dtype).unsqueeze(-1)
        every = delays.unsqueeze(1).expand_as(weight)
    else:
        every = _of_connections(layer, delays)
    longest = layer.max_delay
    kernel = weight.new_zeros(*weight.shape[:2], 2 * longest + 1)
    kernel.scatter_add_(-1, longest - every, weight)
    bias = kernel.new_zeros(len(kernel)) if layer.bias is None else layer.bias.detach().cpu()
    return _nir().Conv1d(
        input_shape=length,
        weight=kernel.numpy(),
        stride=1,
        padding=longest,
        dilation=1,
        groups=1,
        bias=bias.to(kernel.dtype).numpy(),
    )
