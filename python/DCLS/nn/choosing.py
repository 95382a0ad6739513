"""Which way a layer convolves: what it looks at before it asks ``DCLS.method``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS._checks import check_dense
from DCLS._native.dense import is_channels_last
from DCLS._spec import SIGMA_VERSIONS
from DCLS.method import (
    Choice,
    asked,
    choose,
    convolution_dtype,
    expected_cells,
    expected_cells_again,
    is_tracing,
    may_read,
)
from DCLS.nn.builders import _ConstructKernel
from DCLS.nn.frozen import KernelCache
from DCLS.nn.saved import _TellsItsGrid
from DCLS.tuning import state
from DCLS.tuning.problem import Geometry, Problem, bucket

#: So many kernels are counted to know how full all of them are: to about two hundredths.
_COUNTED_PAIRS = 64

#: Counting takes as long as a million products do. It serves convolutions of many more.
_WORTH_COUNTING = 1 << 26

#: A measured choice is of new widths, and elements that are spread. With more times their cells it
#: does not hold.
_WIDE = 2


class _ChoosesMethod(_TellsItsGrid):
    """A layer that knows how it would convolve an input."""

    #: The number of cells that was counted last.
    _cell_count: KernelCache[int] | None = None

    @property
    def known_width(self) -> float | None:
        """``abs(SIG)`` of the elements, where something on the host knows it, or None.

        A schedule that sets the widths, as ``DCLS.WidthSchedule``, sets it. It serves the choice of
        the method only. None (default): a layer on a CPU counts the cells that its elements touch;
        where it cannot, the width is that of a new layer.
        """
        return self.__dict__.get("known_width")

    @known_width.setter
    def known_width(self, value: float | None) -> None:
        self.__dict__["known_width"] = value
        # A graph that torch compiles depends on this one: only a few in a whole schedule. As text,
        # since the compiler takes a number that has changed once as a symbol.
        rough = None if value is None else 4.0 ** math.ceil(math.log(min(max(value, 0.25), 1e6), 4))
        self.__dict__["_rough_width"] = None if rough is None else str(rough)

    def explain(self, input: Tensor) -> Choice:
        """Says which way the layer would convolve ``input`` now, and why. It does not convolve.

        Gradient mode, autocast, the parameters' ``requires_grad`` and the input's layout count as
        they are at the call. On a CPU so do the positions and the widths, where the choice depends
        on them. On a GPU it measures where ``forward`` would, see ``DCLS.tune``.

        Args:
            input: ``(N, in_channels, *spatial)`` or ``(in_channels, *spatial)``.

        Returns:
            A ``DCLS.method.Choice``: method, reason and source.

        Raises:
            TypeError: ``input`` is no tensor.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
        x, padding = self._pad(input)
        return self._choose(x, padding, self.weight, self.P, self.SIG)

    def _is_batched(self, input: Tensor) -> bool:
        """Whether ``input`` has a batch axis; raises unless it is dense and fits the layer."""
        check_dense("input", input)
        ndim = len(self.stride)
        if input.ndim not in (ndim + 1, ndim + 2):
            raise ValueError(
                f"input must have {ndim} spatial axes, that is shape (N, {self.in_channels}, "
                f"*spatial) or ({self.in_channels}, *spatial), got {tuple(input.shape)}"
            )
        if input.shape[-ndim - 1] != self.in_channels:
            raise ValueError(
                f"input must have {self.in_channels} channels, got {input.shape[-ndim - 1]} in the "
                f"shape {tuple(input.shape)}"
            )
        return input.ndim == ndim + 2

    @staticmethod
    def _any_requires_grad(tensors: Sequence[Tensor]) -> bool:
        # A list: torch.compile cannot take a generator here.
        return any([tensor.requires_grad for tensor in tensors])  # noqa: C419

    def _trains(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a gradient of the tensors is wanted.

        A trace serves both gradient modes, so that the present one does not count.
        """
        traces = not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None
        return (torch.is_grad_enabled() or traces) and self._any_requires_grad(tensors)

    def _pad(self, input: Tensor) -> tuple[Tensor, tuple[int, ...] | str]:
        """Pads where equal zeros would not do; returns the padding that is left, of zeros."""
        if self.padding_mode == "zeros" and not self._is_one_sided():
            both: Any = self.padding
            return input, both
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = F.pad(input, self._reversed_padding_repeated_twice, mode=mode)
        return padded, (0,) * len(self.stride)

    def _only_choice(self) -> Choice | None:
        """Returns what a layer takes whose kind leaves no choice; None for the others."""
        return None

    def _choose(
        self,
        x: Tensor,
        padding: tuple[int, ...] | str,
        weight: Tensor,
        P: Tensor,
        SIG: Tensor | None,
        kernel: Tensor | None = None,
    ) -> Choice:
        """Chooses how to convolve ``x``, which is padded.

        ``kernel`` is that of a ``DCK`` that is not ours: all of its cells count. None if it has not
        been built.
        """
        only = self._only_choice()
        if only is not None:
            return only
        if self.in_channels == 0 or self.out_channels == 0:
            # Torch's convolution refuses the one, and drops the output's channels with the other.
            return Choice("direct", "the layer has no channels on one side", "default")
        if self.method != "auto":
            return asked(self.method, x.device.type)
        if x.layout != torch.strided or x.is_nested or x.is_quantized:
            # Torch's convolution takes some of these, and says which it does not.
            return Choice("conv", "the input is not a dense tensor", "default")
        ndim = len(self.stride)
        if x.ndim not in (ndim + 1, ndim + 2) or x.shape[-ndim - 1] != self.in_channels:
            # Torch's convolution says what is wrong, as it did in 0.1.1.
            return Choice("conv", "the input does not fit the layer", "default")
        dtype = convolution_dtype(x, weight if kernel is None else kernel)
        if dtype is None:
            return Choice("conv", "the dtypes of input and parameters differ", "default")
        size = self._whole_kernel_size() if kernel is None else tuple(kernel.shape[2:])
        tensors = [kernel] if kernel is not None else [t for t in (weight, P, SIG) if t is not None]
        points = math.prod(size)
        cells: int | Callable[[], int] = points
        own, traces = isinstance(self.DCK, _ConstructKernel), is_tracing()
        if own:
            cells = self._expected_cells()
            # In this order: a question about its sizes would bind a graph to them, and a small
            # layer should not pay for the questions behind it.
            if not traces and self.known_width is None:
                products = x.numel() * self.out_channels * points
                worth = products > _WORTH_COUNTING * self.groups
                if worth and self._is_plain() and may_read([*tensors, x]):
                    cells = functools.partial(self._count_cells, weight, P, SIG)
        explicit = self._explicit_padding()[::-2] if isinstance(padding, str) else padding
        trains, last = self._trains(tensors), is_channels_last(x)
        find = functools.partial(
            choose,
            input_shape=x.shape if x.ndim == ndim + 2 else (1, *x.shape),
            out_channels=self.out_channels,
            groups=self.groups,
            kernel_size=size,
            training=trains,
            dtype=dtype,
            stride=self.stride,
            padding=explicit,
            channels_last=last,
            device_type=x.device.type,
        )
        if own and (traces or x.is_cuda or state.latest or state.recorder is not None):
            if callable(cells) and self.version in SIGMA_VERSIONS:
                cells = cells()
            geometry = self._geometry(x, weight, explicit, dtype, last, trains)
            # A list: torch.compile cannot take a generator here.
            if traces or not all([type(length) is int for length in x.shape]):  # noqa: C419
                # A graph serves other sizes, too, and other settings of torch.
                return state.measured_before(geometry) or find(cells=cells)
            return self._measured(geometry, x, tensors, cells, find)
        return find(cells=cells)

    def _geometry(
        self,
        x: Tensor,
        weight: Tensor,
        padding: tuple[int, ...],
        dtype: torch.dtype,
        channels_last: bool,
        trains: bool,
    ) -> Geometry:
        """Returns what a measured choice depends on, except for the size of ``x``."""
        builder = self.DCK
        assert isinstance(builder, _ConstructKernel)
        return Geometry(
            x.device.type,
            x.device.index,
            dtype,
            x.dtype,
            weight.dtype,
            channels_last,
            self.in_channels,
            self.out_channels,
            self.groups,
            self._whole_kernel_size(),
            self.dense_kernel_size,
            self.dilated_kernel_size,
            self.stride,
            padding,
            self.version,
            self.kernel_count,
            builder._sigma_min(self.version),
            # torch.compile may take the widths behind this number as symbols. The length of a range
            # is a constant.
            bucket(len(range(self._expected_cells()))),
            self.bias is not None,
            torch.is_grad_enabled() and x.requires_grad,
            trains,
        )

    def _measured(
        self,
        geometry: Geometry,
        x: Tensor,
        tensors: Sequence[Tensor],
        cells: int | Callable[[], int],
        static: Callable[..., Choice],
    ) -> Choice:
        """Returns what was measured for such a call, or is now; else the static choice."""
        # Only now: most layers on a CPU do not need it.
        from DCLS.tuning import facts, lookup

        ndim = len(self.stride)
        batch = x.shape[0] if x.ndim == ndim + 2 else 1
        flags = facts.flags(geometry.device_type)
        problem = Problem(geometry, bucket(batch), tuple(x.shape[-ndim:]), flags)
        why_not = ""
        if not self._is_plain():
            why_not = "a subclass or a hook may change the kernel"
        elif not callable(cells) and cells > _WIDE * self._expected_cells():
            why_not = "its elements are wider than new ones; known_width is not set"
        width = self.known_width
        recorder = state.recorder  # another thread may end there
        if recorder is not None:
            choice = static(cells=cells)
            recorder.append(state.Asked(self, problem, batch, width, choice, why_not))
            return choice
        if not why_not:
            measured, why_not = lookup.find(problem, batch, width, [x, *tensors])
            if measured is not None:
                return measured
        choice = static(cells=cells)
        if x.is_cuda:
            choice = choice._replace(reason=f"{choice.reason}; not measured: {why_not}")
        return choice

    def _is_plain(self) -> bool:
        """Whether the kernel is what a builder of this package builds."""
        builder = self.DCK  # torch looks a module up slowly
        return isinstance(builder, _ConstructKernel) and builder.is_plain()

    def _expected_cells(self) -> int:
        builder = self.DCK
        assert isinstance(builder, _ConstructKernel)
        if torch.compiler.is_compiling():
            rough: str | None = self.__dict__.get("_rough_width")
            count, width = expected_cells, None if rough is None else float(rough)
        else:
            count, width = expected_cells_again, self.known_width
        version = self.version
        return count(
            version,
            self.kernel_count,
            self.dense_kernel_size,
            self.dilated_kernel_size,
            builder._sigma_min(version),
            width,
        )

    @torch.no_grad()
    def _count_cells(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> int:
        """Counts the cells that the elements touch, in the mean over some pairs of channels.

        So a schedule that narrows the widths takes each method at its time. It counts anew when a
        value of these pairs has changed.
        """
        pairs = math.prod(weight.shape[:-1])
        shape = (len(self.dilated_kernel_size), *weight.shape)
        rows = [P] if SIG is None or self.version not in SIGMA_VERSIONS else [P, SIG]
        if pairs == 0 or any(row.shape != shape for row in rows):
            return self._expected_cells()
        # An odd step does not meet the same input channel again and again.
        step = pairs // _COUNTED_PAIRS | 1
        some = [row.reshape(shape[0], pairs, -1)[:, ::step] for row in rows]
        builder = self.DCK
        assert isinstance(builder, _ConstructKernel)

        def count() -> int:
            support = builder.support(weight.reshape(pairs, -1)[::step], *some)
            assert support is not None
            return round(int(support.sum()) / len(support) * math.prod(self.dense_kernel_size))

        if self._cell_count is None:
            self._cell_count = KernelCache()
        version = self.version
        sizes = self.dense_kernel_size, self.dilated_kernel_size
        return self._cell_count(count, (version, builder._sigma_min(version), *sizes), some)
