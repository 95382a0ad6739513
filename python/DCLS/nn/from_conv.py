"""A DCLS layer in the place of a convolution of torch, fresh or with its trained kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from DCLS import _checks
from DCLS._types import Method, Version
from DCLS.nn.axes import position_limits, to_kernel_axes, to_position_rows
from DCLS.nn.fitting import Elements, Grid, chunks, fit, lone_taps, on_the_cells
from DCLS.nn.initial import InitPositions, check_init_positions, off_kinks, put_rows
from DCLS.nn.parameters import _DclsParameters

if TYPE_CHECKING:
    from typing_extensions import Self

#: The plain layers, by whether they are transposed and by their number of axes.
PLAIN: dict[tuple[bool, int], type[_ConvNd]] = {
    (False, 1): nn.Conv1d,
    (False, 2): nn.Conv2d,
    (False, 3): nn.Conv3d,
    (True, 1): nn.ConvTranspose1d,
    (True, 2): nn.ConvTranspose2d,
    (True, 3): nn.ConvTranspose3d,
}

#: What else a module calls: another module in its place would not.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

#: What torch's parametrization ``weight_norm`` leaves behind when it is removed: it renames keys of
#: old state dicts for the parametrization, which is gone.
_LEFT = "_weight_norm_compat_hook"


def check_plain(conv: object) -> _ConvNd:
    """Returns ``conv`` if it is a convolution of torch and nothing more.

    Raises:
        TypeError: it is another module, or a class that computes something else.
        RuntimeError: hooks, parametrizations or members of its own would be lost.
    """
    name = type(conv).__name__
    kind = next((kind for kind in PLAIN.values() if isinstance(conv, kind)), None)
    if kind is None or not isinstance(conv, _ConvNd):
        raise TypeError(f"{name} is no convolution of torch.nn with 1 to 3 axes")
    for method in ("forward", "_conv_forward"):
        own = getattr(type(conv), method, None) is not getattr(kind, method, None)
        if own or method in vars(conv):
            raise TypeError(f"{name} has a {method} of its own, which a DCLS layer would not run")
    if type(conv.weight) not in (Tensor, nn.Parameter):
        raise TypeError(
            f"{name} has a weight of the class {type(conv.weight).__name__}; convert the model "
            "before it is sharded or quantised, and after lazy modules have run"
        )
    if parametrize.is_parametrized(conv):
        raise RuntimeError(
            f"{name} has parametrizations, which would be lost; remove them first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    hooks = [
        f"{attribute.strip('_')}: {hook_name}"
        for attribute in _HOOKS
        for hook in (getattr(conv, attribute, None) or {}).values()
        if not (hook_name := getattr(hook, "__qualname__", type(hook).__name__)).endswith(_LEFT)
    ]
    if hooks:
        raise RuntimeError(f"{name} has hooks, which would be lost; remove them ({hooks})")
    own_members = {n for n, _ in [*conv.named_parameters(), *conv.named_buffers()]} | {
        n for n, _ in conv.named_children()
    }
    if own_members - {"weight", "bias"}:
        raise RuntimeError(
            f"{name} has members of its own, which would be lost: "
            f"{sorted(own_members - {'weight', 'bias'})}"
        )
    return conv


class FromConv(_DclsParameters):
    """A layer that can take the place of a convolution."""

    _is_transposed: ClassVar[bool] = False

    @classmethod
    def from_conv(
        cls,
        conv: _ConvNd,
        *,
        dilated_kernel_size: int | Sequence[int],
        kernel_count: int | None = None,
        version: Version | None = None,
        start: InitPositions | str = "spread",
        method: Method = "auto",
        init_widths: float | None = None,
    ) -> Self:
        """Makes the layer that can take the place of a convolution of ``torch.nn``.

        It has the same channels, groups, stride, ``padding_mode``, device, dtype, ``training`` and
        ``requires_grad``, and a copy of the bias. Its padding is larger, so that the output has the
        same shape. ``conv`` is left as it is. ``DCLS.convert_`` does this for a model.

        With ``start="kernel"`` the elements take the trained kernel. With as many elements as the
        kernel has weights, the layer computes the same to rounding. Fewer elements, and those of
        ``gauss`` and ``spline``, which reach beyond their cell, get the best fit that some hundred
        steps on the kernel alone find.

        Args:
            conv: ``torch.nn.Conv1d``, ``2d`` or ``3d``; for a transposed layer
                ``torch.nn.ConvTranspose1d``, ``2d`` or ``3d``. It has as many axes as the layer.
            dilated_kernel_size: number of grid points, an int or one for each learnable axis. The
                kernel of ``conv``, with its dilation, must fit into it. Unless the padding is
                ``same``, both must be odd or both even.
            kernel_count: number of elements; None (default) for the number of weights that the
                kernel of ``conv`` has on the learnable axes.
            version: the interpolation. None (default) is ``v0`` for ``start="kernel"``, which
                keeps the outputs, and ``gauss`` otherwise.
            start: ``kernel``, or where the elements of fresh weights are: ``spread`` (default),
                ``normal``, ``grid`` or a function, see ``reset_parameters``.
            method: the ``method`` of the layer; default ``auto``.
            init_widths: ``SIG`` at the start; None (default) for the version's own.

        Returns:
            The layer.

        Raises:
            TypeError: an argument has a wrong type, ``conv`` is of another kind, or its class has a
                ``forward`` of its own.
            ValueError: an argument is out of its range, or the kernel of ``conv`` does not fit.
            RuntimeError: ``conv`` has hooks, parametrizations or members of its own.
        """
        layer = cls._like(
            conv, dilated_kernel_size, kernel_count, version, start, method, init_widths
        )
        if start == "kernel":
            start_from_kernels([layer], [conv])
        return layer

    @classmethod
    def _learnable_conv_axes(cls, conv: _ConvNd) -> tuple[int, ...]:
        """Returns the axes of the convolution that become learnable."""
        ndim = len(conv.kernel_size)
        return tuple(range(ndim - (cls._learnable_ndim or ndim), ndim))

    @classmethod
    def _more_options(cls, conv: _ConvNd) -> dict[str, Any]:
        """Returns the arguments of the constructor that only some classes have."""
        dense = cls._dense_ndim or 0
        return {"dense_kernel_size": conv.kernel_size[:dense]} if dense else {}

    @classmethod
    def _like(
        cls,
        conv: _ConvNd,
        dilated_kernel_size: object,
        kernel_count: int | None,
        version: Version | None,
        start: Any,
        method: Method,
        init_widths: float | None,
    ) -> Self:
        """Makes the layer with fresh weights."""
        conv = check_plain(conv)
        kind = PLAIN.get((cls._is_transposed, cls._ndim or 0))
        if kind is None or not isinstance(conv, kind):
            wanted = "a convolution" if kind is None else f"a torch.nn.{kind.__name__}"
            raise TypeError(f"conv must be {wanted}, got {type(conv).__name__}")
        check_init_positions(start, "start", ("kernel",))
        axes = cls._learnable_conv_axes(conv)
        size = _checks.grid_size(dilated_kernel_size, len(axes))
        whole = list(conv.kernel_size)
        for axis, points in zip(axes, size, strict=True):
            whole[axis] = points
        padding = _padding_of(conv, whole, axes)
        weights = math.prod(conv.kernel_size[axis] for axis in axes)
        more = cls._more_options(conv)
        if method != "auto":
            more["method"] = method
        if cls._is_transposed:
            more["output_padding"] = conv.output_padding
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            weights if kernel_count is None else kernel_count,
            stride=conv.stride,
            padding=padding,
            dilated_kernel_size=size,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            version=("v0" if start == "kernel" else "gauss") if version is None else version,
            init_positions="normal" if start == "kernel" else start,
            init_widths=init_widths,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **more,
        )
        for parameter in layer.parameters():
            parameter.requires_grad_(conv.weight.requires_grad)
        if conv.bias is not None:
            assert layer.bias is not None
            layer.bias.requires_grad_(conv.bias.requires_grad)
            with torch.no_grad():
                layer.bias.copy_(conv.bias)
        return layer.train(conv.training)

    # Kernels that share their positions are a row: (R, M, ...), with positions (D, R, K).

    def _to_rows(self, kernels: Tensor) -> Tensor:
        """Rearranges ``(out, in / groups, *dense, *rest)``, or the transposed order, to rows."""
        lead = 2 + len(self.dense_kernel_size)
        return kernels.reshape(-1, 1, *kernels.shape[lead:])

    def _from_rows(self, rows: Tensor) -> Tensor:
        """Gives weights ``(R, M, K)`` the shape of the layer's ``weight``."""
        return rows.reshape(self.weight.shape)

    def _smallest_width(self) -> float | None:
        """Returns the smallest width where it is not the version's own, else None."""
        builder: Any = getattr(self, "DCK", None)
        width: float | None = builder._sigma_min(self.version) if builder is not None else None
        return width

    def _elements_by_axis(self, name: str) -> Tensor | None:
        """Returns ``P`` or ``SIG`` as ``(D, R, K)`` in the order of the kernel's axes."""
        rows: Tensor | None = getattr(self, name)
        if rows is None:
            return None
        by_axis = to_kernel_axes(rows.detach(), self._row_axes())
        return by_axis.reshape(len(by_axis), -1, rows.shape[-1])


def _padding_of(conv: _ConvNd, size: Sequence[int], axes: Sequence[int]) -> Any:
    """Returns the padding with which a kernel of ``size`` gives an output of the same shape."""
    spans = _spans(conv)
    for axis, points in enumerate(size):
        if axis not in axes and spans[axis] != conv.kernel_size[axis]:
            raise ValueError(
                f"conv must have a dilation of 1 on axis {axis}, which is not learnable, "
                f"got {conv.dilation[axis]}"
            )
        if points < spans[axis]:
            raise ValueError(
                f"dilated_kernel_size must be at least {spans[axis]} on axis {axis} of the "
                f"convolution, which is what its kernel spans, got {points}"
            )
    if conv.padding == "same":
        return "same"
    for axis, points in enumerate(size):
        if (points - spans[axis]) % 2:
            raise ValueError(
                f"dilated_kernel_size must be {'odd' if spans[axis] % 2 else 'even'} on axis "
                f"{axis} of the convolution, as what its kernel spans, {spans[axis]} points: with "
                f"{points} no padding on both sides gives an output of the same shape"
            )
    before = [side for side, _ in _checks.padding_sides(conv.padding, spans, conv.stride)]
    return tuple(b + (p - s) // 2 for b, p, s in zip(before, size, spans, strict=True))


def _spans(conv: _ConvNd) -> list[int]:
    """Returns the points of the input that the kernel of ``conv`` spans."""
    return [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]


def _cells(layer: FromConv, conv: _ConvNd) -> list[range]:
    """Returns the grid points of the layer that the weights of ``conv`` lie on, axis by axis."""
    ranges = []
    spans = _spans(conv)
    axes = layer._learnable_conv_axes(conv)
    for axis, points in zip(axes, layer.dilated_kernel_size, strict=True):
        # Also where padding="same" has an odd number of zeros: the shorter side is before.
        first = (points - 1) // 2 - (spans[axis] - 1) // 2
        ranges.append(range(first, first + spans[axis], conv.dilation[axis]))
    return ranges


def kernel_chunks(
    layers: Sequence[FromConv], convs: Sequence[_ConvNd]
) -> Iterator[tuple[slice, Tensor]]:
    """Yields rows, and the kernels of the convolutions there on the grid: ``(r, M, C)``, float64.

    The layers share their positions, so that each has as many rows.
    """
    size = layers[0].dilated_kernel_size
    rows = []
    for layer, conv in zip(layers, convs, strict=True):
        taps = [conv.kernel_size[axis] for axis in layer._learnable_conv_axes(conv)]
        lead = conv.weight.shape[: 2 + len(layer.dense_kernel_size)]
        rows.append(layer._to_rows(conv.weight.detach().reshape(*lead, *taps)))
    kernels = sum(part.shape[1] for part in rows)
    count = max(kernels, layers[0].kernel_count)
    for piece in chunks(len(rows[0]), count * math.prod(size)):
        targets = []
        for part, layer, conv in zip(rows, layers, convs, strict=True):
            some = part[piece]
            target = some.new_zeros(*some.shape[:2], *size, dtype=torch.float64)
            cells = (slice(r.start, r.stop, r.step) for r in _cells(layer, conv))
            where: Any = (slice(None), slice(None), *cells)
            target[where] = some.double()
            targets.append(target.flatten(2))
        yield piece, torch.cat(targets, dim=1)


@torch.no_grad()
def start_from_kernels(layers: Sequence[FromConv], convs: Sequence[_ConvNd]) -> None:
    """Gives layers that share their positions the kernels of convolutions, or the closest ones."""
    first = layers[0]
    if first.weight.is_meta or first.weight.numel() == 0:
        return
    grid = Grid(first.dilated_kernel_size, first.version, first._smallest_width())
    device = first.weight.device
    if any(_cells(first, conv) != _cells(first, convs[0]) for conv in convs):
        raise ValueError("layers that share positions must have kernels of one size and dilation")
    axes = [
        torch.tensor(list(r), dtype=torch.float64, device=device) + position_limits(points)[0]
        for r, points in zip(_cells(first, convs[0]), grid.size, strict=True)
    ]
    cells = torch.cartesian_prod(*axes).reshape(-1, len(axes)).T
    found: list[Elements] = []
    count = first.kernel_count
    widths = first.init_widths
    taps = lone_taps(grid, cells, widths) if count >= cells.shape[1] else None
    for _, targets in kernel_chunks(layers, convs):
        if taps is None:
            found.append(fit(targets, grid, cells, count, widths))
        else:
            found.append(on_the_cells(targets, grid, cells, taps, count, widths))
    weight = torch.cat([elements.weight for elements in found])
    P = torch.cat([elements.P for elements in found], dim=1)
    SIG = None
    if found[0].SIG is not None:
        SIG = torch.cat([e.SIG for e in found if e.SIG is not None], dim=1)
    start = 0
    for layer in layers:
        order = layer._row_axes()
        rows = P.reshape(layer.P.shape).to(layer.P.dtype)
        put_rows(layer.P, off_kinks(rows, grid.size, grid.version), grid.size, order)
        if SIG is not None and layer.SIG is not None:
            layer.SIG.copy_(to_position_rows(SIG.reshape(layer.SIG.shape), order))
        kernels = layer._to_rows(layer.weight).shape[1]
        layer.weight.copy_(layer._from_rows(weight[:, start : start + kernels]))
        start += kernels


@torch.no_grad()
def kernel_error(layer: FromConv, conv: _ConvNd) -> float:
    """Returns the relative error of the layer's kernels: norm of the difference over the norm."""
    if layer.weight.is_meta:
        return math.nan
    grid = Grid(layer.dilated_kernel_size, layer.version, layer._smallest_width())
    weight = layer._to_rows(layer.weight.detach())
    P, SIG = layer._elements_by_axis("P"), layer._elements_by_axis("SIG")
    assert P is not None
    error = norm = 0.0
    for piece, targets in kernel_chunks([layer], [conv]):
        SIG_here = None if SIG is None else SIG[:, piece].double()
        kernels = grid.kernels(weight[piece].double(), P[:, piece].double(), SIG_here)
        error += float((kernels - targets).square().sum())
        norm += float(targets.square().sum())
    return math.sqrt(error / norm) if norm else math.sqrt(error)
