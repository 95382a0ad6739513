"""Convolutions over space whose values arrive later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from DCLS import _checks
from DCLS._types import Device, Method, Padding, Version
from DCLS.delays._base import InitDelays, _DelayLayer, positive
from DCLS.delays._layout import LAYOUTS
from DCLS.delays._ways import send, with_state
from DCLS.delays.step import Taps, check_state
from DCLS.nn.builders import ConstructKernel2_1d, ConstructKernel3_1d
from DCLS.nn.subclassing import _DclsN_Md

__all__ = ["DelayConv1d", "DelayConv2d"]

Pairs = tuple[tuple[int, int], ...]


class Planes(NamedTuple):
    """Sends each input to the outputs around it, at all steps: a kernel for each step of each."""

    kernel: Tensor
    padding: Pairs
    stride: tuple[int, ...]
    groups: int

    def onto(self, state: Tensor, values: Tensor) -> Tensor:
        """Sends ``values`` (batch, inputs, *space)."""
        padded = F.pad(values, [zeros for pair in reversed(self.padding) for zeros in pair])
        convolve: Any = F.conv1d if len(self.stride) == 1 else F.conv2d
        sent: Tensor = convolve(padded, self.kernel, None, self.stride, 0, groups=self.groups)
        by_step: Tensor = sent.unflatten(1, (-1, len(state) + 1)).movedim(2, 0)
        return with_state(by_step, state)


def _around(causal: bool, points: int) -> tuple[int, int]:
    """Returns the zeros before and behind a sequence."""
    return _checks.padding_sides("causal" if causal else "same", [points], [1], time_axis=0)[0]


class _DelayConv(_DelayLayer, _DclsN_Md):
    """What DelayConv1d and DelayConv2d share."""

    _learnable_ndim = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        max_delay: int,
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        groups: int = 1,
        count: int = 1,
        version: Version = "gauss",
        layout: str | None = None,
        causal: bool = True,
        bias: bool = False,
        init_delays: InitDelays = "uniform",
        init_width: float | None = None,
        method: Method = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Creates the layer.

        Args:
            in_channels: number of input channels ``I``.
            out_channels: number of output channels ``O``.
            kernel_size: points of the kernel in space, an int or one for each axis of space.
            max_delay: the longest delay in steps, at least 0.
            stride: step between outputs in space, an int or one for each axis; default 1. In time
                it is 1.
            padding: zeros around the space of the input: an int, or for each axis an int or a pair
                ``(before, behind)``; or ``same`` or ``valid``. Default 0.
            groups: number of groups ``g``. It divides ``I`` and ``O``. Default 1.
            count: number of weights and delays at each point of the kernel; default 1.
            version: the interpolation, one of ``DCLS.VERSIONS``; default ``gauss``.
            layout: the order of the axes, see the class; None (default) for the first one there.
            causal: True (default) for delays from now on. False shifts the output by ``(max_delay
                + 1) // 2`` steps to earlier times, and there are no steps then.
            bias: whether the layer has a learnable bias; default False.
            init_delays: where the delays start, as ``DelayLinear`` takes it.
            init_width: ``SIG`` at the start; None (default) for the version's own. Only for a
                version with widths.
            method: how the layer convolves, see ``Dcls1d``; default ``auto``.
            device: where to create the parameters; None (default) for torch's default.
            dtype: dtype of the parameters; None (default) for torch's default.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument is out of its range or has a wrong length.
        """
        space = self._space
        layout = LAYOUTS[space][0] if layout is None else layout
        points = _checks.integers("kernel_size", kernel_size, space, 1, _checks.MAX_AXIS_SIZE)
        steps = _checks.integers("stride", stride, space, 1, _checks.MAX_AXIS_SIZE)
        given = padding if not isinstance(padding, str) else _checks.padding_name(padding, steps)
        sides = _checks.padding_sides(_checks.padding(given, steps), points, steps)
        longest = _checks.integer("max_delay", max_delay, 0, _checks.MAX_AXIS_SIZE - 1)
        around = _around(_checks.flag("causal", causal), longest + 1)
        self._set_up_delays(
            max_delay, count, layout, causal, init_delays, init_width, version,
            in_channels=positive("in_channels", in_channels),
            out_channels=positive("out_channels", out_channels), groups=groups, bias=bias,
            stride=(*steps, 1), padding=(*sides, around), dense_kernel_size=points, method=method,
            device=device, dtype=dtype,
        )  # fmt: skip

    @property
    def dilated_kernel_size(self) -> tuple[int, ...]:
        """One more than the longest delay. It may be set later; the padding in time follows."""
        size: tuple[int, ...] = self._built("dilated_kernel_size")
        return size

    @dilated_kernel_size.setter
    def dilated_kernel_size(self, value: int | Sequence[int]) -> None:
        first = "dilated_kernel_size" not in self.__dict__
        _DclsN_Md.dilated_kernel_size.fset(self, value)  # type: ignore[attr-defined]
        if not first:
            self.padding = (*self.padding[:-1], _around(self.causal, self.max_delay + 1))

    def initial_state(  # type: ignore[override]
        self,
        batch: int,
        size: int | Sequence[int],
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Returns the state before the first step: nothing is on its way.

        Args:
            batch: number of sequences.
            size: size of the input in space, an int or one for each axis.
            device: None (default) for that of the layer.
            dtype: None (default) for that of ``weight``.

        Returns:
            Zeros ``(max_delay, batch, out_channels, *space of the output)``.

        Raises:
            TypeError: an argument is no int.
            ValueError: an argument is out of its range, or the layer is not causal.
        """
        sizes = _checks.integers("size", size, self._space, 1)
        return self._empty_state(_checks.integer("batch", batch, 0), sizes, device, dtype)

    def _state_shape(self, batch: int, space: Sequence[int] = ()) -> tuple[int, ...]:
        lengths = [
            (length + before + behind - points) // step + 1
            for length, (before, behind), points, step in zip(
                space, self._space_padding(), self.dense_kernel_size, self.stride, strict=False
            )
        ]
        if any(length < 1 for length in lengths):
            raise ValueError(f"size must fit the kernel of {self.dense_kernel_size}, got {space}")
        return (self.max_delay, batch, self.out_channels, *lengths)

    def _check_step(self, input: Tensor, state: Tensor) -> None:
        if input.ndim != 2 + self._space or input.shape[1] != self.in_channels:
            raise ValueError(
                f"input must have the shape (batch, {self.in_channels}) and {self._space} axes of "
                f"space, got {tuple(input.shape)}"
            )
        check_state(state, self._state_shape(input.shape[0], input.shape[2:]))

    def _space_padding(self) -> Pairs:
        padding: Any = self.padding
        pairs = [side if isinstance(side, tuple) else (side, side) for side in padding]
        return tuple(pairs[: self._space])

    def _make_taps(self) -> Taps:
        kernel = self._dense_kernel(self.weight, self.P, self.SIG).to(self.weight.dtype)
        by_step = kernel.flip(-1).movedim(-1, 1).flatten(0, 1)
        send = Planes(by_step, self._space_padding(), self.stride[: self._space], self.groups)
        return Taps(None, send, None)

    def _advance(
        self, input: Tensor, state: Tensor, taps: Taps, in_place: bool
    ) -> tuple[Tensor, Tensor]:
        output, state = send(taps.send, state, input, in_place)
        if self.bias is not None:
            output = output + self.bias.view(-1, *(1,) * self._space)
        return output, state

    def _describe(self) -> Iterator[str]:
        yield f"{self.in_channels}, {self.out_channels}"
        yield f"kernel_size={self.dense_kernel_size}"
        yield from self._describe_delays()
        yield f"stride={self.stride[:-1]}"
        if any(map(any, self._space_padding())):
            yield f"padding={self._space_padding()}"
        if self.groups != 1:
            yield f"groups={self.groups}"


class DelayConv1d(_DelayConv):
    """A 1-D convolution whose values arrive later, by learned real numbers of steps.

    It is a ``Dcls2_1d`` whose last axis is time, with causal padding: at each point of the kernel
    it learns ``count`` delays. For ``gauss`` the width is ``|SIG| + 1.0``, as there.

    Attributes:
        weight: ``(O, I/g, kernel_size, count)``.
        P: the positions behind the delays, ``(1, O, I/g, kernel_size, count)``, see ``delays()``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.

    Shape:
        ``(T, B, I, L)`` for the layout ``TBCL``, the default; ``BTCL``, ``BCTL`` and ``BCLT`` are
        others; each also without ``B``. The output has as many steps.

    Example:
        >>> layer = DelayConv1d(2, 16, kernel_size=5, max_delay=10, padding=2)
        >>> layer(torch.randn(50, 8, 2, 64)).shape
        torch.Size([50, 8, 16, 64])
    """

    _ndim, _dense_ndim, _space = 2, 1, 1
    _builder: ClassVar[Callable[..., Module] | None] = ConstructKernel2_1d


class DelayConv2d(_DelayConv):
    """A 2-D convolution whose values arrive later, by learned real numbers of steps.

    It is a ``Dcls3_1d`` whose last axis is time, with causal padding: at each point of the kernel
    it learns ``count`` delays.

    Attributes:
        weight: ``(O, I/g, *kernel_size, count)``.
        P: the positions behind the delays, ``(1, O, I/g, *kernel_size, count)``, see ``delays()``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.

    Shape:
        ``(T, B, I, H, W)`` for the layout ``TBCHW``, the default; ``BTCHW``, ``BCTHW`` and
        ``BCHWT`` are others; each also without ``B``. The output has as many steps.

    Example:
        >>> layer = DelayConv2d(2, 16, kernel_size=3, max_delay=10, padding=1)
        >>> layer(torch.randn(50, 8, 2, 34, 34)).shape
        torch.Size([50, 8, 16, 34, 34])
    """

    _ndim, _dense_ndim, _space = 3, 2, 2
    _builder: ClassVar[Callable[..., Module] | None] = ConstructKernel3_1d
