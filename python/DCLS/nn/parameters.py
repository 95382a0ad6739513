"""What a DCLS layer holds: its settings, its parameters, their limits, and how it is saved."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter, init

from DCLS import _checks
from DCLS._spec import SIGMA_VERSIONS
from DCLS._types import Method, PaddingMode, Version
from DCLS.method import check_method
from DCLS.nn import padding
from DCLS.nn.axes import axis_order, row_limits
from DCLS.nn.builders import _ConstructKernel, keep, keep_state
from DCLS.nn.editing import check_rows, clamp_rows, edit, on_whole
from DCLS.nn.initial import (
    InitPositions,
    check_init_positions,
    check_init_widths,
    fill_rows,
    initial_width,
)
from DCLS.nn.reaching import set_value, value_of


class _Fact:
    """An attribute that follows from others, until a subclass stores one of its name."""

    def __init__(self, of: Callable[[Any], tuple[int, ...]]) -> None:
        self._of = of

    def __get__(self, layer: Any, owner: type) -> Any:
        return self if layer is None else self._of(layer)


class _DclsParameters(Module):
    """The part of a DCLS layer that does not depend on how it convolves."""

    #: Numbers of axes of the convolution, and of learnable and dense axes of the kernel. None: as
    #: many as the argument has, which then must be a sequence.
    _ndim: ClassVar[int | None] = None
    _learnable_ndim: ClassVar[int | None] = None
    _dense_ndim: ClassVar[int | None] = None
    #: Size of the dense kernel where a subclass builds one that has other axes than the grid.
    _given_kernel_size: tuple[int, ...] | None = None
    #: The class of ``DCK``; None where a subclass builds its own.
    _builder: ClassVar[Callable[..., Module] | None] = None

    in_channels: int
    out_channels: int
    kernel_count: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | tuple[tuple[int, int], ...] | str
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
    _kept_method: Method
    #: Where ``reset_parameters`` puts the elements, and how wide it makes them.
    init_positions: InitPositions = "normal"
    init_widths: float | None = None

    def _set_up(self, given: Mapping[str, Any]) -> None:
        """Initialises the module from the arguments of its constructor.

        Each kind of layer states its arguments once, in its constructor, and hands on its
        ``locals()``.

        Args:
            given: the arguments by name, and any other names, which are ignored. ``transposed``,
                ``output_padding``, ``dense_kernel_size``, ``kernel_size``, ``method``,
                ``init_positions`` and ``init_widths`` may be missing.
        """
        super().__init__()
        self.in_channels, self.out_channels, self.groups = _checks.channels(
            given["in_channels"], given["out_channels"], given["groups"]
        )
        self.kernel_count = _checks.integer("kernel_count", given["kernel_count"], 1)
        self.stride = given["stride"]
        ndim = len(self.stride)
        self.padding = given["padding"]
        dense = given.get("dense_kernel_size", ())
        self.dense_kernel_size = _checks.integers(
            "dense_kernel_size", dense, self._dense_ndim, 1, _checks.MAX_AXIS_SIZE
        )
        self.dilated_kernel_size = given["dilated_kernel_size"]
        self.transposed = _checks.flag("transposed", given.get("transposed", False))
        self.padding = self.padding  # that of a transposed convolution has two equal sides
        self.output_padding = given.get("output_padding", 0)
        self.padding_mode = given["padding_mode"]
        self.version = given["version"]
        self.method = given.get("method", "auto")
        if given.get("kernel_size") is not None:
            self._given_kernel_size = _checks.integers("kernel_size", given["kernel_size"], ndim, 1)
        self._explicit_padding()  # raises where it is not known
        self.init_positions = check_init_positions(given.get("init_positions", "normal"))
        self.init_widths = check_init_widths(given.get("init_widths"), self.version)
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

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute. Settings of the convolution are checked as by the constructor."""
        if name == "stride":
            count = len(self.stride) if "stride" in self.__dict__ else self._ndim
            value = _checks.integers(name, value, count, 1, _checks.MAX_AXIS_SIZE)
            if isinstance(self.__dict__.get("padding"), str):
                _checks.padding(self.__dict__["padding"], value)
        elif name == "padding" and "stride" in self.__dict__:
            mode = self.__dict__.get("padding_mode", "zeros")
            value = padding.checked(value, self.stride, mode, bool(self.__dict__.get("transposed")))
        elif name == "output_padding" and "stride" in self.__dict__:
            value = _checks.integers(name, value, len(self.stride), 0)
        elif name == "padding_mode":
            value = _checks.choice(name, value, _checks.PADDING_MODES)
            padding.check_causal(self.__dict__.get("padding"), value)
        super().__setattr__(name, value)

    def _make_parameters(self, bias: object, device: Any, dtype: object) -> None:
        """Creates the parameters in the order of 0.1.1: optimizers number them by it."""
        inputs, outputs, groups = self.in_channels, self.out_channels, self.groups
        lead = (inputs, outputs // groups) if self.transposed else (outputs, inputs // groups)
        shape = (*lead, *self.dense_kernel_size, self.kernel_count)
        rows = (len(self.dilated_kernel_size), *self._rows_shape(shape))
        dtype = _checks.parameter_dtype(dtype)
        _checks.check_device_name(device)
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

    #: Size of the dense kernel, as the layer that ``to_conv`` returns has it.
    kernel_size = _Fact(lambda layer: layer._whole_kernel_size())
    #: 1 on each axis: the grid of the dense kernel is that of the input.
    dilation = _Fact(lambda layer: (1,) * len(layer.stride))

    def _whole_kernel_size(self) -> tuple[int, ...]:
        """Points of the dense kernel on each axis of the convolution."""
        return (*self.dense_kernel_size, *self.dilated_kernel_size)

    @property
    def version(self) -> Version:
        """The interpolation, one of ``DCLS.VERSIONS``. It may be set at any time.

        The layer and its ``DCK`` have one version: setting either sets both, also where a wrapper
        such as ``torch.compile`` or activation checkpointing holds the builder. What does not
        reach the builder raises a RuntimeError. Where a subclass builds a ``DCK`` without a
        version, the layer alone has it.
        """
        version: Version = self._built("version")
        return version

    @version.setter
    def version(self, value: Version) -> None:
        _checks.check_version(value)
        self._build("version", value)

    @property
    def dilated_kernel_size(self) -> tuple[int, ...]:
        """Number of grid points on each learnable axis. It may be set at any time, as ``version``.

        The number of axes stays. The kernel, the limits of the positions and the padding that
        depends on the kernel follow.
        """
        size: tuple[int, ...] = self._built("dilated_kernel_size")
        return size

    @dilated_kernel_size.setter
    def dilated_kernel_size(self, value: int | Sequence[int]) -> None:
        own = self.__dict__.get("dilated_kernel_size")
        count = self._learnable_ndim if own is None else len(own)
        self._build("dilated_kernel_size", _checks.grid_size(value, count))

    def _built(self, name: str) -> Any:
        """Returns a setting that the layer has in common with its builder."""
        key = f"_kept_{name}"
        own = self.__dict__[key]
        builder = self._modules.get("DCK")
        if isinstance(builder, _ConstructKernel) and builder.__dict__[key] == own:
            return own  # nearly always, and asked for often
        DCK = getattr(self, "DCK", None)
        if DCK is None:
            return own
        value = value_of(DCK, name, own)
        if value != own and not torch.compiler.is_compiling():
            keep(self, name, value)
        return value

    def _check_wrappers(self) -> None:
        """Raises if a wrapper of the builder tells another setting than the builder builds."""
        for name in ("version", "dilated_kernel_size"):
            self._built(name)

    def _build(self, name: str, value: Any) -> None:
        """Sets it in both."""
        DCK = getattr(self, "DCK", None)
        if DCK is not None and value != self._built(name):
            set_value(DCK, name, value)
        keep(self, name, value)

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
        return self._kept_method

    @method.setter
    def method(self, value: Method) -> None:
        if check_method(value) != "auto" and self.transposed:
            raise ValueError(
                "method must be 'auto' for a transposed convolution, which is always torch's own, "
                f"got {value!r}"
            )
        keep(self, "method", value)
        if hasattr(type(self), "use_implicit_gemm"):  # the switch that 0.1.1 had in its place
            self.__dict__["use_implicit_gemm"] = value != "conv"

    def _explicit_padding(self) -> tuple[int, ...]:
        """Returns the padding as ``torch.nn.functional.pad`` takes it, last axis first."""
        kernel_size = self._given_kernel_size or self._whole_kernel_size()
        return padding.explicit(self.padding, kernel_size, self.stride, self._time_axis())

    #: The same, by the name that torch's layers have for it.
    _reversed_padding_repeated_twice = property(_explicit_padding)

    def _used_weight(self) -> Tensor:
        """Returns the weights that the layer computes with."""
        return self.weight

    def _is_one_sided(self) -> bool:
        """Whether the padding before and behind an axis differs, so that torch's layers lack it."""
        return padding.is_one_sided(self.padding)

    def _time_axis(self) -> int:
        """Returns the axis of the convolution that ``padding="causal"`` takes for time."""
        return len(self.stride) - 1

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

    def reset_parameters(self) -> None:
        """Draws new parameters.

        ``weight`` and ``bias`` are drawn as ``torch.nn.Conv2d`` draws them for the same number
        of weights. ``SIG`` becomes ``init_widths``; where that is None, 0 for ``max`` and 0.23 for
        any other version. Positions stay within the grid. They start as ``init_positions`` says:

        - ``normal``: as in DCLS 0.1.1, see the class.
        - ``spread``: each kernel is filled evenly, at other points than the kernel beside it.
        - ``grid``: the same regular grid in all kernels, as in a dilated convolution.
        - a function ``(positions, size)``: it fills ``positions`` in place, or returns others of
          their shape ``(D, *lead, K)``. There ``positions[d]`` is along the d-th learnable axis of
          the kernel, and 0 is the point ``S // 2``.

        For ``normal`` the same seed gives the same parameters as in 0.1.1. Only kernels with an
        even or a non-square size differ, because their limits do.

        Parameters that are computed are drawn as those that ``clamp_parameters`` names; a
        parametrization may change what is drawn. Parameters that processes share as a ``DTensor``
        become what the first process of their mesh draws, as for a layer that is not sharded: all
        of its processes must call this.

        Raises:
            RuntimeError: as ``clamp_parameters`` raises it, for any of the parameters.
        """
        draw = functools.partial(edit, self, exact=False)
        draw("weight", on_whole(lambda weight: init.kaiming_uniform_(weight, a=math.sqrt(5))))
        if self.bias is not None:
            fan_in = math.prod(self.weight.shape[1:])
            bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
            draw("bias", on_whole(lambda bias: init.uniform_(bias, -bound, bound)))
        draw("P", on_whole(self._draw_rows))
        if self.SIG is not None:
            width = initial_width(self.version, self.init_widths)
            draw("SIG", on_whole(lambda SIG: init.constant_(SIG, width)))

    def _draw_rows(self, P: Tensor) -> None:
        """Draws the rows of ``P`` in place."""
        limits = self._position_limits()
        check_rows(P, len(limits))
        how = self.init_positions
        if how != "normal":
            fill_rows(P, self.dilated_kernel_size, self._row_axes(), how, self.version)
            return
        for index, (low, high) in enumerate(limits):
            self._draw_positions(P[index], low, high)

    def _draw_positions(self, row: Tensor, low: int, high: int) -> None:
        """Draws one row of ``P`` in place, between ``low`` and ``high``."""
        raise NotImplementedError

    def clamp_parameters(self) -> None:
        """Clamps ``P`` in place to the grid: to ``[-(S // 2), S - 1 - S // 2]`` on each axis.

        Where processes share ``P`` as a ``DTensor``, each clamps its own part. Where ``P`` is
        computed from other parameters, these are edited: those of a parametrization that has a
        ``right_inverse``, of ``torch.nn.utils.prune`` and of ``torch.nn.utils.weight_norm``.

        Raises:
            RuntimeError: the next forward would undo the edit. ``P`` has a parametrization without
                a ``right_inverse``, or one that does not give the clamped positions back; or a hook
                computes it in another way; or ``fully_shard`` has gathered it for a forward.
        """
        limits = self._position_limits()
        edit(self, "P", lambda P: clamp_rows(P, limits), exact=True)

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
        own = self.__dict__
        own.setdefault("padding_mode", "zeros")
        # Modules that 1.0 pickled have other names, those of 0.1.1 a switch in place of the method.
        for name in ("version", "method"):
            if f"_own_{name}" in own:
                own[name] = own.pop(f"_own_{name}")
        keep_state(self)
        sides = own.pop("_reversed_padding_repeated_twice", ())
        if sides and self.padding == "same" and tuple(sides) != self._explicit_padding():
            ends = zip(sides[-2::-2], sides[::-2], strict=True)
            self._given_kernel_size = tuple(before + after + 1 for before, after in ends)
        direct = own.pop("use_implicit_gemm", True)
        self.method = own.get("method", "auto" if direct else "conv")


def _first_argument(frame: FrameType) -> object:
    """Returns the first argument of the function that runs in ``frame``, or None."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
