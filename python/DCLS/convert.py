"""Surgery: DCLS layers in the place of the convolutions of any model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from DCLS._spec import SIGMA_VERSIONS
from DCLS._types import Version
from DCLS.functional import construct_support
from DCLS.method import METHODS
from DCLS.nn import conv as construct
from DCLS.nn import im2col, transposed
from DCLS.nn.base import _DclsModule
from DCLS.nn.fold import become, check_may_become
from DCLS.nn.from_conv import check_plain, kernel_error, start_from_kernels
from DCLS.nn.initial import InitPositions

__all__ = ["Conversion", "ConversionReport", "convert_", "is_depthwise"]

#: From so many outputs on that share their samples, the im2col layer is the faster one. Measured
#: were 1 output, where it takes 10 times as long, and 64, where it takes a half to a sixteenth. On
#: a line between these they meet at 9 to 25.
IM2COL_OUTPUTS = 16

_CONSTRUCT = {1: construct.Dcls1d, 2: construct.Dcls2d, 3: construct.Dcls3d}
_IM2COL = {1: im2col.Dcls1d, 2: im2col.Dcls2d, 3: im2col.Dcls3d}
_TRANSPOSED = {
    1: transposed.DclsTranspose1d,
    2: transposed.DclsTranspose2d,
    3: transposed.DclsTranspose3d,
}


def is_depthwise(module: nn.Module, name: str = "") -> bool:  # noqa: ARG001
    """Whether a module is a convolution of torch with one input channel for each of its groups.

    Convolutions of one point and transposed ones do not count.

    Args:
        module: any module.
        name: its name in the model, which filters are given; not used.

    Returns:
        True for a depthwise convolution.
    """
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and module.groups == module.in_channels > 1
        and math.prod(module.kernel_size) > 1
    )


@dataclass(frozen=True)
class Conversion:
    """What happened to one convolution.

    Attributes:
        name: its name in the model.
        before: its class and kernel.
        after: the class of the layer, its elements, its grid and its version.
        parameters: number of parameters before and after. Shared positions count for the first
            layer that has them.
        cells: cells of a kernel that elements touch, in the mean; None on the meta device.
        points: number of cells of a kernel.
        method: ``construct`` or ``im2col``.
        error: relative error of the kernels for ``start="kernel"``, else None.
    """

    name: str
    before: str
    after: str
    parameters: tuple[int, int]
    cells: float | None
    points: int
    method: str
    error: float | None


class ConversionReport(Sequence[Conversion]):
    """What ``convert_`` replaced, in the order of the model; it prints as a table."""

    def __init__(self, conversions: Sequence[Conversion]) -> None:
        """Creates the report of some conversions."""
        self._conversions = tuple(conversions)

    def __getitem__(self, index: Any) -> Any:
        """Returns a conversion, or a tuple of them for a slice."""
        return self._conversions[index]

    def __len__(self) -> int:
        """Returns the number of convolutions that were replaced."""
        return len(self._conversions)

    def __str__(self) -> str:
        """Returns the table."""
        with_errors = any(c.error is not None for c in self)
        head = ["name", "before", "after", "parameters", "cells", "method"]
        rows = [head + ["error"] * with_errors]
        for c in self:
            cells = "?" if c.cells is None else f"{c.cells:.0f}"
            row = [c.name or "(the model)", c.before, c.after]
            row += [f"{c.parameters[0]} -> {c.parameters[1]}", f"{cells} of {c.points}", c.method]
            if with_errors:
                row.append("" if c.error is None else f"{c.error:.1e}")
            rows.append(row)
        sums = [sum(c.parameters[i] for c in self) for i in (0, 1)]
        rows.append([f"{len(self)} layers", "", "", f"{sums[0]} -> {sums[1]}", "", ""])
        rows[-1] += [""] * with_errors
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)

    __repr__ = __str__


def convert_(
    model: nn.Module,
    *,
    dilated_kernel_size: int | Sequence[int],
    kernel_count: int | None = None,
    version: Version | None = None,
    filter_fn: Callable[[nn.Module, str], bool] = is_depthwise,
    share: str | Callable[[str, nn.Module], Hashable] | None = None,
    start: InitPositions | str = "spread",
    method: str = "auto",
) -> ConversionReport:
    """Replaces convolutions of a model by DCLS layers, in place.

    Each layer is what ``from_conv`` of its class makes: an output of the same shape, the same
    groups, stride, ``padding_mode``, device, dtype, ``training`` and ``requires_grad``, and the
    values of the bias. The convolution object itself becomes the layer, so that lists, attributes
    and closures that hold it follow. Parameters are new objects: create the optimizer afterwards.
    If there is any error, the model is unchanged. ``DCLS.fold`` is the way back.

    Which layer takes the place of a convolution, with ``method="auto"``: a transposed convolution
    becomes a ``DclsTranspose`` layer. A convolution with at least 16 output channels in each group
    becomes an im2col layer, whose outputs share their positions: it samples the input once for all
    of them. Any other one, as a depthwise one, becomes a construct layer such as ``Dcls2d``.

    Args:
        model: any module. It may itself be a convolution.
        dilated_kernel_size: number of grid points, an int or one for each axis of the convolutions.
        kernel_count: number of elements; None (default) for the number of weights of each kernel.
        version: the interpolation. None (default) is ``gauss`` for fresh weights, and ``v0`` for
            ``start="kernel"``: there an element fills one cell, and the outputs stay. An element of
            ``gauss`` always reaches the cells beside it, so that it can only come close.
        filter_fn: which modules to replace: a function ``(module, name) -> bool``. Default: the
            depthwise convolutions, ``DCLS.is_depthwise``.
        share: which layers share ``P`` and ``SIG``. None (default): none do. ``stage``: layers
            that follow one another and whose positions have the same shape, as those of a stage
            of a ConvNeXt. Or a function ``(name, module)``: layers with the same value share them,
            except for None. Weights are never shared.
        start: ``spread`` (default), ``normal``, ``grid`` or a function for fresh weights at
            such positions, see ``reset_parameters``. ``kernel`` takes the trained kernels: the
            same outputs to rounding where there is an element for each weight; with fewer the best
            fit that some hundred steps find, whose relative error the report has. v1 and max start
            a rounding off the grid points, where their positions would get no gradient.
        method: ``auto`` (default); ``im2col`` or ``construct`` for one kind of layers; ``direct``
            or ``conv`` for construct layers with this ``method``.

    Returns:
        What was replaced: a sequence of ``Conversion`` that prints as a table.

    Raises:
        TypeError: an argument has a wrong type, or the filter takes a module that is no plain
            convolution of torch.
        ValueError: an argument is out of its range, the filter takes nothing, a kernel does not
            fit the size, convolutions share a weight, or layers cannot share positions.
        RuntimeError: a convolution has hooks, parametrizations or members of its own, which the
            message names with the layer; or the model is in ``DistributedDataParallel``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(filter_fn):
        raise TypeError(f"filter_fn must be a function, got {type(filter_fn).__name__}")
    if not (share is None or share == "stage" or callable(share)):
        kind = ValueError if isinstance(share, str) else TypeError
        raise kind(f"share must be None, 'stage' or a function, got {share!r}")
    methods = ("construct", "im2col", *METHODS)
    if method not in methods:
        kind = ValueError if isinstance(method, str) else TypeError
        raise kind(f"method must be one of {', '.join(methods)}, got {method!r}")
    chosen = _choose_convolutions(model, filter_fn)
    layers: list[_DclsModule] = []
    for name, conv in chosen:
        with _Naming(name):
            kind_of_layer = _layer_class(conv, method)
            of_layer: Any = method if method in ("direct", "conv") else "auto"
            layer = kind_of_layer._like(
                conv, dilated_kernel_size, kernel_count, version, start, of_layer, None
            )
            check_may_become(conv, layer)
        layers.append(layer)
    keys = _share_keys(chosen, layers, share)
    _share(chosen, layers, keys)
    if start == "kernel":
        for group in _groups(keys):
            with _Naming(chosen[group[0]][0]):
                start_from_kernels([layers[i] for i in group], [chosen[i][1] for i in group])
    report = _report(chosen, layers, start == "kernel")
    for (_, conv), layer in zip(chosen, layers, strict=True):
        become(conv, layer)
    return report


class _Naming:
    """Adds the name of a layer to an error."""

    def __init__(self, name: str) -> None:
        self._where = f"model.{name}" if name else "model"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, (TypeError, ValueError, RuntimeError)):
            named = next(k for k in (TypeError, ValueError, RuntimeError) if isinstance(error, k))
            raise named(f"{self._where} cannot be converted: {error}") from error


def _choose_convolutions(
    model: nn.Module, filter_fn: Callable[[nn.Module, str], bool]
) -> list[tuple[str, _ConvNd]]:
    """Returns the convolutions that the filter takes, by name."""
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise RuntimeError(
            "model is in DistributedDataParallel, which would not see the new parameters: convert "
            "it before"
        )
    chosen: list[tuple[str, _ConvNd]] = []
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(name)
        if filter_fn(module, name):
            with _Naming(name):
                chosen.append((name, check_plain(module)))
    if not chosen:
        raise ValueError(_nothing_to_convert(model, filter_fn is is_depthwise))
    for _, conv in chosen:
        for parameter in conv.parameters():
            if len(names := users[id(parameter)]) > 1:
                raise ValueError(
                    f"model.{names[0]} cannot be converted: it shares a parameter with {names[1:]}"
                )
    return chosen


def _nothing_to_convert(model: nn.Module, depthwise: bool) -> str:
    """Returns what to say where no module was chosen: what there is, and how to choose it."""
    # The layers of this package are no convolutions of torch, whatever they derive from.
    done = sum(isinstance(module, _DclsModule) for module in model.modules())
    kinds = Counter(
        type(module).__name__
        for module in model.modules()
        if isinstance(module, _ConvNd) and not isinstance(module, _DclsModule)
    )
    has = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
    has += [f"{done} DCLS layer(s)"] * (done > 0)
    text = f"the model has {' and '.join(has)}" if has else "the model has no convolution"
    if not depthwise:
        return f"filter_fn takes no module of the model: {text}"
    text = f"there is no depthwise convolution to convert: {text}"
    if not kinds:
        return text
    return (
        f"{text}; filter_fn takes others, as lambda module, name: "
        "isinstance(module, torch.nn.Conv2d)"
    )


def _layer_class(conv: _ConvNd, method: str) -> type[_DclsModule]:
    """Returns the class of the layer that takes the place of a convolution."""
    ndim = len(conv.kernel_size)
    if isinstance(conv, _ConvTransposeNd):
        if method not in ("auto", "construct"):
            raise ValueError(f"method must be 'auto' for a transposed convolution, got {method!r}")
        return _TRANSPOSED[ndim]
    many = method == "auto" and conv.out_channels // conv.groups >= IM2COL_OUTPUTS
    return _IM2COL[ndim] if many or method == "im2col" else _CONSTRUCT[ndim]


def _share_keys(
    chosen: list[tuple[str, _ConvNd]],
    layers: list[_DclsModule],
    share: str | Callable[[str, nn.Module], Hashable] | None,
) -> list[Hashable]:
    """Returns a key for each layer; layers with the same one share their positions."""
    keys: list[Hashable] = []
    for i, ((name, conv), layer) in enumerate(zip(chosen, layers, strict=True)):
        key: Hashable = None
        if share == "stage":
            same = i > 0 and _form(layer) == _form(layers[i - 1])
            key = keys[-1] if same else ("stage", i)
        elif callable(share):
            key = share(name, conv)
        keys.append(("alone", i) if key is None else key)
    return keys


def _form(layer: _DclsModule) -> tuple[Any, ...]:
    return type(layer), layer.P.shape, layer.dilated_kernel_size


def _groups(keys: list[Hashable]) -> Iterator[list[int]]:
    """Yields the numbers of the layers that share positions."""
    for key in dict.fromkeys(keys):
        yield [i for i, other in enumerate(keys) if other == key]


def _share(
    chosen: list[tuple[str, _ConvNd]], layers: list[_DclsModule], keys: list[Hashable]
) -> None:
    """Gives layers with the same key the same parameters ``P`` and ``SIG``."""
    for group in _groups(keys):
        first = layers[group[0]]
        for i in group[1:]:
            if _form(layers[i]) != _form(first):
                forms = [
                    f"model.{chosen[j][0]} ({layers[j].dilated_kernel_size}, "
                    f"P {tuple(layers[j].P.shape)})"
                    for j in (group[0], i)
                ]
                raise ValueError(f"share: positions of different shapes: {' and '.join(forms)}")
            layers[i].P, layers[i].SIG = first.P, first.SIG


def _report(
    chosen: list[tuple[str, _ConvNd]], layers: list[_DclsModule], with_errors: bool
) -> ConversionReport:
    conversions = []
    seen: set[int] = set()
    for (name, conv), layer in zip(chosen, layers, strict=True):
        new = [p for p in layer.parameters() if id(p) not in seen]
        seen.update(id(p) for p in new)
        grid = "x".join(map(str, layer.dilated_kernel_size))
        is_im2col = isinstance(layer, tuple(_IM2COL.values()))
        conversions.append(
            Conversion(
                name=name,
                before=f"{type(conv).__name__} {'x'.join(map(str, conv.kernel_size))}",
                after=f"{type(layer).__name__} {layer.kernel_count} in {grid}, {layer.version}",
                parameters=(
                    sum(p.numel() for p in conv.parameters()),
                    sum(p.numel() for p in new),
                ),
                cells=_cells(layer),
                points=math.prod(layer.dilated_kernel_size),
                method="im2col" if is_im2col else "construct",
                error=kernel_error(layer, conv) if with_errors else None,
            )
        )
    return ConversionReport(conversions)


@torch.no_grad()
def _cells(layer: _DclsModule) -> float | None:
    """Counts the cells that the elements of a kernel touch, in the mean over some kernels."""
    P, SIG = layer._elements_by_axis("P"), layer._elements_by_axis("SIG")
    if P is None or P.is_meta or P.numel() == 0:
        return None
    step = P.shape[1] // 64 + 1
    widths = SIG[:, ::step] if SIG is not None and layer.version in SIGMA_VERSIONS else None
    support = construct_support(
        P[:, ::step],
        widths,
        dilated_kernel_size=layer.dilated_kernel_size,
        version=layer.version,
        sigma_min=layer._smallest_width(),
    )
    return float(support.sum()) / len(support)
