"""The layouts of sequences: which axis is time, and how it becomes the last one and comes back."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Proxy

from DCLS import _checks

#: Layouts by the number of axes of space. T is time, B the batch, N and C channels.
LAYOUTS: Final[dict[int, tuple[str, ...]]] = {
    0: ("TBN", "BTN", "BNT"),
    1: ("TBCL", "BTCL", "BCTL", "BCLT"),
    2: ("TBCHW", "BTCHW", "BCTHW", "BCHWT"),
}


def check_layout(value: object, space: int) -> str:
    """Returns ``value`` if it is a layout with so many axes of space."""
    return _checks.choice("layout", value, LAYOUTS[space])


def time_axis(layout: str) -> int:
    """Returns the axis of time, which holds with and without a batch: 0, or counted from behind."""
    at = layout.index("T")
    return at if at == 0 else at - len(layout)


def check_sequence(input: Any, layout: str, channels: int) -> None:
    """Raises unless ``input`` is a tensor in this layout, perhaps without the batch."""
    if isinstance(input, Proxy):
        return
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
    bare = layout.replace("B", "")
    if input.ndim not in (len(layout), len(bare)):
        raise ValueError(
            f"input must have the axes {layout}, or {bare} without a batch, got the shape "
            f"{tuple(input.shape)}"
        )
    here = layout if input.ndim == len(layout) else bare
    axis = here.index("N" if "N" in here else "C")
    if input.shape[axis] != channels:
        raise ValueError(
            f"input must have {channels} channels on axis {axis} of {here}, got the shape "
            f"{tuple(input.shape)}"
        )
    check_real(input)


def check_real(input: Tensor) -> None:
    """Raises unless the values are floating-point numbers: masks and counts of spikes are not."""
    if not input.is_floating_point():
        raise TypeError(
            f"input must have a floating-point dtype, got {input.dtype}: of spikes give "
            "spikes.to(layer.weight.dtype)"
        )


def to_time_last(input: Tensor, layout: str) -> Tensor:
    """Returns a view with time as the last axis."""
    return input.movedim(time_axis(layout), -1)


def from_time_last(output: Tensor, layout: str) -> Tensor:
    """Puts time back; the memory is that of the layout, so that a step is one block."""
    axis = time_axis(layout)
    return output if axis == -1 else output.movedim(-1, axis).contiguous()


def in_layout(inner: nn.Module, layout: str) -> nn.Module:
    """Returns a module of torch alone that applies ``inner``, time last, to the layout."""
    axis = time_axis(layout)
    if axis == -1:
        return inner
    # A graph: torch has no module that moves an axis, and one of ours would need DCLS.
    graph = Graph()
    input = graph.placeholder("input")
    output = graph.call_module("inner", (graph.call_method("movedim", (input, axis, -1)),))
    moved = graph.call_method("movedim", (output, -1, axis))
    graph.output(graph.call_method("contiguous", (moved,)))
    return GraphModule({"inner": inner}, graph, "Moved").train(inner.training)
