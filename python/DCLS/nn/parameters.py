"""What a DCLS layer holds: its settings, its parameters, their limits, and how it is saved."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import Module, Parameter, init
from torch.nn.utils import parametrize

from DCLS import _checks
from DCLS._spec import INITIAL_SIG, SIGMA_VERSIONS
from DCLS._types import Method, PaddingMode, Version
from DCLS.method import check_method
from DCLS.nn.axes import axis_order, row_limits


class _DclsParameters(Module):
    """The part of a DCLS layer that does not depend on how it convolves."""

    #: Numbers of axes of the convolution, and of learnable and dense axes of the kernel. None: as
    #: many as the argument has, which then must be a sequence.
    _ndim: ClassVar[int | None] = None
    _learnable_ndim: ClassVar[int | None] = None
    _dense_ndim: ClassVar[int | None] = None
    #: The class of ``DCK``; None where a subclass builds its own.
    _builder: ClassVar[Callable[..., Module] | None] = None

    in_channels: int
    out_channels: int
    kernel_count: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilated_kernel_size: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    padding_mode: PaddingMode
    dense_kernel_size: tuple[int, ...] = ()
    weight: Tensor
    P: Tensor
    SIG: Tensor | None
    bias: Tensor | None
    DCK: Callable[..., Tensor]
    #: ``abs(SIG)`` of the elements, where something on the host knows it, as a schedule that sets
    #: the widths does. It serves the choice of the method only. None: that of a new layer.
    known_width: float | None = None

    def _set_up(self, given: Mapping[str, Any]) -> None:
        """Initialises the module from the arguments of its constructor.

        Each kind of layer states its arguments once, in its constructor, and hands on its
        ``locals()``.

        Args:
            given: the arguments by name, and any other names, which are ignored. ``transposed``,
                ``output_padding``, ``dense_kernel_size``, ``kernel_size`` and ``method`` may be
                missing.
        """
        super().__init__()
        self.in_channels, self.out_channels, self.groups = _checks.channels(
            given["in_channels"], given["out_channels"], given["groups"]
        )
        self.kernel_count = _checks.integer("kernel_count", given["kernel_count"], 1)
        self.stride = _checks.integers("stride", given["stride"], self._ndim, 1)
        ndim = len(self.stride)
        self.padding = _checks.padding(given["padding"], self.stride)
        self.dense_kernel_size = _checks.integers(
            "dense_kernel_size", given.get("dense_kernel_size", ()), self._dense_ndim, 1
        )
        self.dilated_kernel_size = _checks.integers(
            "dilated_kernel_size", given["dilated_kernel_size"], self._learnable_ndim, 1
        )
        self.transposed = _checks.flag("transposed", given.get("transposed", False))
        self.output_padding = _checks.integers(
            "output_padding", given.get("output_padding", 0), ndim, 0
        )
        mode = _checks.choice("padding_mode", given["padding_mode"], _checks.PADDING_MODES)
        self.padding_mode = cast("PaddingMode", mode)
        self.version = given["version"]
        self.method = given.get("method", "auto")
        whole = given.get("kernel_size")
        if whole is None:
            whole = (*self.dense_kernel_size, *self.dilated_kernel_size)
        else:
            whole = _checks.integers("kernel_size", whole, ndim, 1)
        self._reversed_padding_repeated_twice = self._explicit_padding(whole)
        self._make_parameters(given["bias"], given["device"], given["dtype"])
        if self._builder is not None:
            sizes = [self.dense_kernel_size] if self.dense_kernel_size else []
            self.DCK = self._builder(
                self.out_channels,
                self.in_channels,
                self.groups,
                self.kernel_count,
                *sizes,
                self.dilated_kernel_size,
                self.version,
            )
        if self.kernel_count > 1 and set(self.dilated_kernel_size) == {1}:
            self._warn_of_one_point()

    def _make_parameters(self, bias: object, device: Any, dtype: object) -> None:
        """Creates the parameters in the order of 0.1.1: optimizers number them by it."""
        inputs, outputs, groups = self.in_channels, self.out_channels, self.groups
        lead = (inputs, outputs // groups) if self.transposed else (outputs, inputs // groups)
        shape = (*lead, *self.dense_kernel_size, self.kernel_count)
        rows = (len(self.dilated_kernel_size), *self._rows_shape(shape))
        dtype = _checks.parameter_dtype(dtype)
        self.weight = Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.P = Parameter(torch.empty(rows, device=device, dtype=dtype))
        if self.version in SIGMA_VERSIONS:
            self.SIG = Parameter(torch.empty(rows, device=device, dtype=dtype))
        else:
            self.register_parameter("SIG", None)
        if _checks.flag("bias", bias):
            self.bias = Parameter(torch.empty(outputs, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _warn_of_one_point(self) -> None:
        """Warns that all elements of a kernel are on its one point, at the line that asks for it.

        That line called the outermost constructor of this object, a subclass's included.
        """
        depth, outermost, frame = 1, 1, sys._getframe().f_back
        while frame is not None:
            depth += 1
            if _first_argument(frame) is self:
                outermost = depth
            frame = frame.f_back
        warnings.warn(
            f"{type(self).__name__} has kernel_count={self.kernel_count} elements on the only "
            "point of a kernel of dilated_kernel_size=1. The fourth argument is the stride, here "
            f"{self.stride}, as in DCLS 0.1.1; pass the size by name: dilated_kernel_size=...",
            UserWarning,
            stacklevel=outermost + 1,
        )

    @property
    def version(self) -> Version:
        """The interpolation, one of ``DCLS.VERSIONS``. It may be set at any time.

        The layer and its ``DCK`` have one version: setting either sets both. Where a subclass
        builds a ``DCK`` without a version, the layer alone has it.
        """
        builder = getattr(self, "DCK", None)
        version: Version = getattr(builder, "version", self._own_version)
        return version

    @version.setter
    def version(self, value: Version) -> None:
        _checks.check_version(value)
        self._own_version: Version = value
        builder: Any = getattr(self, "DCK", None)
        if hasattr(builder, "version"):
            builder.version = value

    @property
    def method(self) -> Method:
        """How the layer convolves: ``auto``, ``direct`` or ``conv``. It may be set at any time.

        ``direct`` visits only the cells of the kernel that are not zero, see
        ``DCLS.functional.direct_conv``. ``conv`` is torch's convolution with the dense kernel.
        ``auto`` chooses the one that measurements found faster for such shapes. It may choose one
        for training and the other for inference; their results agree to rounding. They differ where
        the input is infinite or NaN: ``conv`` multiplies the zero cells, too, which makes NaN, and
        ``direct`` does not. A transposed layer takes only ``auto``: its convolution is torch's own.
        """
        return self._own_method

    @method.setter
    def method(self, value: Method) -> None:
        if check_method(value) != "auto" and self.transposed:
            raise ValueError(
                "method must be 'auto' for a transposed convolution, which is always torch's own, "
                f"got {value!r}"
            )
        self._own_method: Method = value

    def _explicit_padding(self, kernel_size: Sequence[int]) -> tuple[int, ...]:
        """Returns the padding as ``torch.nn.functional.pad`` takes it, last axis first."""
        if self.padding == "same" and len(kernel_size) != len(self.stride):
            raise ValueError(
                "kernel_size must have one number for each of the "
                f"{len(self.stride)} axes where padding='same', got {tuple(kernel_size)}"
            )
        sides = _checks.padding_sides(self.padding, kernel_size, self.stride)
        return tuple(zeros for pair in reversed(sides) for zeros in pair)

    def _rows_shape(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of a row of ``P`` and of ``SIG``: each weight has a position."""
        return tuple(weight_shape)

    def _position_limits(self) -> tuple[tuple[int, int], ...]:
        """Returns the lowest and highest position on the grid for each row of ``P``."""
        return row_limits(self.dilated_kernel_size, self._row_axes())

    def _row_axes(self) -> tuple[int, ...]:
        """Returns the learnable axis that each row of ``P`` belongs to."""
        size = self.dilated_kernel_size
        return axis_order(len(size), self.version, dense_ndim=len(self.dense_kernel_size))

    def _edit(self, name: str, edit: Callable[[Tensor], object]) -> None:
        """Runs ``edit`` in place on a parameter, through its parametrization if it has one."""
        with torch.no_grad():
            value: Tensor = getattr(self, name)
            if parametrize.is_parametrized(self, name):
                value = value.clone()
                edit(value)
                setattr(self, name, value)
            else:
                edit(value)

    def reset_parameters(self) -> None:
        """Draws new parameters.

        ``weight`` and ``bias`` are drawn as ``torch.nn.Conv2d`` draws them for the same number
        of weights. Positions are drawn within the grid, see the class. ``SIG`` becomes 0.23 for
        ``gauss`` and 0 for ``max``. The order of the draws is that of DCLS 0.1.1: the same seed
        gives the same parameters. Only kernels with an even or a non-square size differ, because
        their limits do.

        Raises:
            RuntimeError: a parametrization has no ``right_inverse``.
        """
        self._edit("weight", lambda weight: init.kaiming_uniform_(weight, a=math.sqrt(5)))
        if self.bias is not None:
            fan_in = math.prod(self.weight.shape[1:])
            bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
            self._edit("bias", lambda bias: init.uniform_(bias, -bound, bound))
        limits = self._position_limits()

        def draw(P: Tensor) -> None:
            for index, (low, high) in enumerate(limits):
                self._draw_positions(P[index], low, high)

        self._edit("P", draw)
        if self.SIG is not None:
            width = INITIAL_SIG[self.version]
            self._edit("SIG", lambda SIG: init.constant_(SIG, width))

    def _draw_positions(self, row: Tensor, low: int, high: int) -> None:
        """Draws one row of ``P`` in place, between ``low`` and ``high``."""
        raise NotImplementedError

    def clamp_parameters(self) -> None:
        """Clamps ``P`` in place to the grid: to ``[-(S // 2), S - 1 - S // 2]`` on each axis.

        Raises:
            RuntimeError: ``P`` has a parametrization without a ``right_inverse``.
        """
        limits = self._position_limits()

        def clamp(P: Tensor) -> None:
            for index, (low, high) in enumerate(limits):
                P[index].clamp_(low, high)

        self._edit("P", clamp)

    def _describe(self) -> Iterator[str]:
        """Yields the parts of ``extra_repr``."""
        yield f"{self.in_channels}, {self.out_channels}"
        yield f"kernel_count={self.kernel_count}"
        yield f"stride={self.stride}"
        yield f"version={self.version}"
        if self.padding != (0,) * len(self.stride):
            yield f"padding={self.padding}"
        if self.dense_kernel_size:
            yield f"dense_kernel_size={self.dense_kernel_size}"
        yield f"dilated_kernel_size={self.dilated_kernel_size}"
        if any(self.output_padding):
            yield f"output_padding={self.output_padding}"
        if self.groups != 1:
            yield f"groups={self.groups}"
        if self.bias is None:
            yield "bias=False"
        if self.padding_mode != "zeros":
            yield f"padding_mode={self.padding_mode}"
        if self.method != "auto":
            yield f"method={self.method}"

    def extra_repr(self) -> str:
        """Returns the channels, ``kernel_count``, ``stride``, ``version`` and the kernel's size.

        Other settings follow where they differ from their default.
        """
        return ", ".join(self._describe())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # Of modules that 0.1.1 pickled; they know its switch between two convolutions, no method.
        own = self.__dict__
        own.setdefault("padding_mode", "zeros")
        if "version" in own:
            self._own_version = own.pop("version")
        direct = own.pop("use_implicit_gemm", True)
        own.setdefault("_own_method", "auto" if direct else "conv")


def _first_argument(frame: FrameType) -> object:
    """Returns the first argument of the function that runs in ``frame``, or None."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
