"""What all DCLS convolutions share: parameters, their initial values, versions, padding."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module, Parameter, init
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from DCLS._native.dense import is_channels_last
from DCLS._ops import layer
from DCLS._padding import same_padding
from DCLS._spec import INITIAL_SIG, SIGMA_VERSIONS, check_version, resolve_sigma_min
from DCLS.functional import direct_conv
from DCLS.method import (
    Choice,
    check_method,
    choose,
    convolution_dtype,
    expected_cells,
    is_tracing,
    logger,
)
from DCLS.nn import arguments as _arguments
from DCLS.nn.axes import axis_order, row_limits
from DCLS.nn.builders import _ConstructKernel

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

#: The plain layers, by whether they are transposed and by their number of axes.
_PLAIN: dict[tuple[bool, int], Callable[..., _ConvNd]] = {
    (False, 1): nn.Conv1d,
    (False, 2): nn.Conv2d,
    (False, 3): nn.Conv3d,
    (True, 1): nn.ConvTranspose1d,
    (True, 2): nn.ConvTranspose2d,
    (True, 3): nn.ConvTranspose3d,
}


class _DclsModule(Module):
    """The common base of ``_DclsNd`` and ``_DclsN_Md``."""

    #: Numbers of axes of the convolution, and of learnable and dense axes of the kernel. None: as
    #: many as the argument has, which then must be a sequence.
    _ndim: ClassVar[int | None] = None
    _learnable_ndim: ClassVar[int | None] = None
    _dense_ndim: ClassVar[int | None] = None
    #: What ``extra_repr`` says about ``kernel_count``.
    _count_note: ClassVar[str]

    in_channels: int
    out_channels: int
    kernel_count: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilated_kernel_size: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    padding_mode: str
    dense_kernel_size: tuple[int, ...] = ()
    weight: Tensor
    P: Tensor
    SIG: Tensor | None
    bias: Tensor | None
    DCK: Callable[..., Tensor]
    #: ``abs(SIG)`` of the elements, for the choice of the method, where something on the host knows
    #: it: a schedule that sets the widths. None: that of a new layer. It changes no result.
    known_width: float | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dense_kernel_size: int | Sequence[int],
        dilated_kernel_size: int | Sequence[int],
        transposed: bool,
        output_padding: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: str,
        version: str,
        kernel_size: Sequence[int] | None,
        method: str,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = _arguments.channels(
            in_channels, out_channels, groups
        )
        self.kernel_count = _arguments.integer("kernel_count", kernel_count, 1)
        self.stride = _arguments.integers("stride", stride, self._ndim, 1)
        self.padding = _arguments.padding(padding, self.stride)
        self.dense_kernel_size = _arguments.integers(
            "dense_kernel_size", dense_kernel_size, self._dense_ndim, 1
        )
        self.dilated_kernel_size = _arguments.integers(
            "dilated_kernel_size", dilated_kernel_size, self._learnable_ndim, 1
        )
        self.transposed = _arguments.flag("transposed", transposed)
        self.output_padding = _arguments.integers(
            "output_padding", output_padding, len(self.stride), 0
        )
        self.padding_mode = _arguments.padding_mode(padding_mode)
        self.version = version
        self.method = method
        whole = (*self.dense_kernel_size, *self.dilated_kernel_size)
        if kernel_size is not None:
            whole = _arguments.integers("kernel_size", kernel_size, len(self.stride), 1)
        self._reversed_padding_repeated_twice = self._explicit_padding(whole)

        inputs, outputs = self.in_channels, self.out_channels
        lead = (inputs, outputs // groups) if self.transposed else (outputs, inputs // groups)
        shape = (*lead, *self.dense_kernel_size, self.kernel_count)
        rows = (len(self.dilated_kernel_size), *self._rows_shape(shape))
        dtype = _arguments.parameter_dtype(dtype)
        # The order in which 0.1.1 registers them: optimizers number the parameters by it.
        self.weight = Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.P = Parameter(torch.empty(rows, device=device, dtype=dtype))
        if version in SIGMA_VERSIONS:
            self.SIG = Parameter(torch.empty(rows, device=device, dtype=dtype))
        else:
            self.register_parameter("SIG", None)
        if _arguments.flag("bias", bias):
            self.bias = Parameter(torch.empty(outputs, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @property
    def version(self) -> str:
        """The interpolation, one of ``DCLS.VERSIONS``; may be set at any time.

        It is that of ``DCK``: setting either sets both. A ``DCK`` that has no version of its own,
        as a subclass may build, leaves it to the module.
        """
        builder = getattr(self, "DCK", None)
        version: str = getattr(builder, "version", self._own_version)
        return version

    @version.setter
    def version(self, value: str) -> None:
        self._own_version = check_version(value)
        builder: Any = getattr(self, "DCK", None)
        if hasattr(builder, "version"):
            builder.version = value

    @property
    def method(self) -> str:
        """How the layer convolves: ``auto``, ``direct`` or ``conv``; may be set at any time.

        Always ``auto`` where it is transposed.
        """
        return self._own_method

    @method.setter
    def method(self, value: str) -> None:
        if check_method(value) != "auto" and self.transposed:
            raise ValueError(
                "method must be 'auto' for a transposed convolution, which is always torch's own, "
                f"got {value!r}"
            )
        self._own_method = value

    def _explicit_padding(self, kernel_size: Sequence[int]) -> tuple[int, ...]:
        """Returns the padding as ``torch.nn.functional.pad`` takes it, last axis first."""
        if isinstance(self.padding, tuple):
            pairs = [(size, size) for size in self.padding]
        elif self.padding == "valid":
            pairs = [(0, 0)] * len(self.stride)
        elif len(kernel_size) == len(self.stride):
            pairs = same_padding(kernel_size)
        else:
            raise ValueError(
                "kernel_size must have one number for each of the "
                f"{len(self.stride)} axes where padding='same', got {tuple(kernel_size)}"
            )
        return tuple(size for pair in reversed(pairs) for size in pair)

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

        ``weight`` and ``bias`` as ``torch.nn.Conv2d`` does for the same number of weights;
        positions within the grid (see the class); ``SIG`` 0.23 for ``gauss`` and 0 for ``max``.
        The draws come in 0.1.1's order: the same seed gives the same parameters, but for kernels
        with an even or a non-square size, whose limits differ.

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
            RuntimeError: ``P`` is parametrized without a ``right_inverse``.
        """
        limits = self._position_limits()

        def clamp(P: Tensor) -> None:
            for index, (low, high) in enumerate(limits):
                P[index].clamp_(low, high)

        self._edit("P", clamp)

    def _shape_kernel(self, kernel: Tensor) -> Tensor:
        """Gives what ``DCK`` builds the axes of the convolution."""
        return kernel

    def _dense_kernel(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        """Returns the kernel to convolve with."""
        return self._shape_kernel(self.DCK(weight, P, SIG))

    def _kernel_support(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor | None:
        """Returns which cells of that kernel need a gradient; None for all of them."""
        if not isinstance(self.DCK, _ConstructKernel):
            return None
        support = self.DCK.support(weight, P, SIG)
        return None if support is None else self._shape_kernel(support)

    def explain(self, input: Tensor) -> Choice:
        """Says which way the layer would convolve ``input`` now, and why; computes nothing.

        Gradient mode, autocast, the parameters' ``requires_grad`` and the input's layout count as
        they are at the call.

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

    @staticmethod
    def _any_requires_grad(tensors: Sequence[Tensor]) -> bool:
        # A list: torch.compile cannot take a generator here.
        return any([tensor.requires_grad for tensor in tensors])  # noqa: C419

    def _pad(self, input: Tensor) -> tuple[Tensor, tuple[int, ...] | str]:
        """Pads as ``padding_mode`` says; returns the padding that is left, of zeros."""
        if self.padding_mode == "zeros":
            return input, self.padding
        padded = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return padded, (0,) * len(self.stride)

    def _whole_kernel_size(self) -> tuple[int, ...]:
        """Points of the dense kernel on each axis of the convolution."""
        return (*self.dense_kernel_size, *self.dilated_kernel_size)

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

        ``kernel`` is that of a ``DCK`` that is not ours, of which nothing is known beforehand.
        """
        if self.method != "auto":
            return Choice(self.method, f"the layer's method is {self.method!r}", "asked")
        ndim = len(self.stride)
        if x.ndim not in (ndim + 1, ndim + 2) or x.shape[-ndim - 1] != self.in_channels:
            # Torch's convolution says what is wrong, as it did in 0.1.1.
            return Choice("conv", "the input does not fit the layer", "default")
        dtype = convolution_dtype(x, weight if kernel is None else kernel)
        if dtype is None:
            return Choice("conv", "the dtypes of input and parameters differ", "default")
        if kernel is not None:
            size: tuple[int, ...] = tuple(kernel.shape[2:])
            cells, tensors = math.prod(size), [kernel]
        else:
            size = self._whole_kernel_size()
            assert isinstance(self.DCK, _ConstructKernel)
            cells = expected_cells(
                self.version,
                self.kernel_count,
                self.dense_kernel_size,
                self.dilated_kernel_size,
                self.DCK._sigma_min(self.version),
                self.known_width,
            )
            tensors = [weight, P] if SIG is None else [weight, P, SIG]
        return choose(
            input_shape=x.shape if x.ndim == ndim + 2 else (1, *x.shape),
            out_channels=self.out_channels,
            groups=self.groups,
            kernel_size=size,
            cells=cells,
            training=torch.is_grad_enabled() and self._any_requires_grad(tensors),
            dtype=dtype,
            stride=self.stride,
            padding=(0,) * ndim if isinstance(padding, str) else padding,
            channels_last=is_channels_last(x),
            device_type=x.device.type,
        )

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        """Builds the kernel with ``self.DCK`` and convolves ``input`` with it."""
        if self.transposed:
            raise NotImplementedError(
                f"{type(self).__name__} must define _conv_forward: it is transposed"
            )
        x, padding = self._pad(input)
        if not isinstance(self.DCK, _ConstructKernel):
            kernel = self._dense_kernel(weight, P, SIG)
            choice = self._choose(x, padding, weight, P, SIG, kernel)
        else:
            choice = self._choose(x, padding, weight, P, SIG)
            if not torch.compiler.is_compiling() and logger.isEnabledFor(logging.DEBUG):
                logger.debug("%s(%s): %s: %s", type(self).__name__, self.extra_repr(), *choice[:2])
            if choice.method == "direct":
                output = self._in_one_call(x, weight, bias, P, SIG, padding)
                if output is not None:
                    return output
            kernel = self._dense_kernel(weight, P, SIG)
        if choice.method != "direct":
            convolve = _CONV[len(self.stride)]
            return convolve(x, kernel, bias, self.stride, padding, groups=self.groups)
        trains = torch.is_grad_enabled() and kernel.requires_grad
        support = self._kernel_support(weight, P, SIG) if trains else None
        return direct_conv(x, kernel, bias, self.stride, padding, 1, self.groups, support)

    def _in_one_call(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        P: Tensor,
        SIG: Tensor | None,
        padding: tuple[int, ...] | str,
    ) -> Tensor | None:
        """Builds the kernel and convolves by one operator, where nothing comes between the two.

        Returns:
            The output; None where it takes the separate operators: for a kernel that a subclass or
            a hook changes, tensors of other classes or shapes than the layer's own, and while torch
            traces or compiles, where separate operators can be fused with others.
        """
        builder = self.DCK
        assert isinstance(builder, _ConstructKernel)
        if is_tracing() or not builder.is_plain():
            return None
        if builder.dilated_kernel_size != self.dilated_kernel_size:
            return None
        version = self.version
        SIG = SIG if version in SIGMA_VERSIONS else None
        tensors = [t for t in (x, weight, P, SIG, bias) if t is not None]
        if any(type(t) is not Tensor and type(t) is not Parameter for t in tensors):
            return None
        shape = (len(self.dilated_kernel_size), *weight.shape)
        rows = [P] if SIG is None else [P, SIG]
        if any(t.shape != shape or t.dtype != weight.dtype for t in rows):
            return None
        ndim = len(self.stride)
        if isinstance(padding, str):
            before = self._reversed_padding_repeated_twice[::-1]
            if before[::2] != before[1::2]:
                return None
            padding = before[::2]
        grad = torch.is_grad_enabled()
        output: Tensor = layer(
            x if x.ndim == ndim + 2 else x.unsqueeze(0),
            weight,
            P,
            SIG,
            bias,
            self.dilated_kernel_size,
            self._row_axes(),
            version,
            resolve_sigma_min(version, builder._sigma_min(version)),
            self._whole_kernel_size(),
            self.stride,
            padding,
            self.groups,
            [grad and x.requires_grad, grad and self._any_requires_grad((weight, *rows))],
        )
        return output if x.ndim == ndim + 2 else output.squeeze(0)

    def forward(self, input: Tensor) -> Tensor:
        """Convolves ``input``, batched or not, as the ``torch.nn`` convolution of its dimension.

        Args:
            input: ``(N, in_channels, *spatial)`` or ``(in_channels, *spatial)``.

        Returns:
            ``(N, out_channels, *spatial)`` or ``(out_channels, *spatial)``.

        Raises:
            TypeError: the dtypes of ``weight``, ``P`` and ``SIG`` differ, or are not among those
                that the class takes; where it convolves directly, or with im2col, also for an
                input of another dtype.
            ValueError: ``version`` needs ``SIG`` and there is none, or ``P`` or ``SIG`` does not
                fit ``weight``; there also for an input that does not fit.
            RuntimeError: torch's, from its own convolution or its padding, for an input whose
                number of axes, channels, size, dtype or device does not fit; or the tensors are on
                a GPU that this build or machine cannot serve.
        """
        return self._conv_forward(input, self.weight, self.bias, self.P, self.SIG)

    def to_conv(self) -> _ConvNd:
        """Returns the plain convolution that computes the same, with the kernel as it is now.

        Its parameters are copies, so that later edits of either layer leave the other alone. They
        are on the device and of the dtype of ``weight`` and ``bias``. ``weight`` requires a
        gradient if any of ``weight``, ``P`` and ``SIG`` does, and ``bias`` if ``bias`` does. The
        ``training`` flag is that of this layer. ``DCLS.fold`` does it for a whole model.

        Returns:
            A ``torch.nn.Conv1d``, ``Conv2d`` or ``Conv3d``, or for a transposed layer a
            ``torch.nn.ConvTranspose1d``, ``2d`` or ``3d``, with the same stride, padding,
            ``padding_mode`` and groups. Its weight is the dense kernel.

        Raises:
            TypeError: a subclass has a ``forward`` or a ``_conv_forward`` of its own: what that
                computes need not be a convolution with the kernel. A ``DCK`` of its own is fine.
            RuntimeError: the layer has forward hooks, which a plain layer would not run.
            ValueError: ``version`` needs ``SIG`` and there is none, or ``DCK`` builds a kernel that
                does not fit the channels.
        """
        self._refuse_other_forwards()
        parameters = [self.weight, self.P, *(() if self.SIG is None else (self.SIG,))]
        with torch.no_grad():
            # A new tensor even where a DCK returns one of the parameters.
            kernel = self._dense_kernel(self.weight, self.P, self.SIG).to(self.weight.dtype).clone()
        first, second = self.in_channels, self.out_channels
        lead = (first, second // self.groups) if self.transposed else (second, first // self.groups)
        ndim = len(self.stride)
        if kernel.ndim != ndim + 2 or kernel.shape[:2] != lead:
            raise ValueError(
                f"DCK must build a kernel of shape {lead} and {ndim} axes more, "
                f"got {tuple(kernel.shape)}"
            )
        more = {"output_padding": self.output_padding} if self.transposed else {}
        # On the meta device, so that no memory is taken and no random number is drawn.
        conv = _PLAIN[self.transposed, ndim](
            self.in_channels,
            self.out_channels,
            tuple(kernel.shape[2:]),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            bias=False,
            padding_mode=self.padding_mode,
            device="meta",
            **more,
        )
        conv.weight = Parameter(kernel, requires_grad=any(p.requires_grad for p in parameters))
        if self.bias is not None:
            conv.bias = Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        conv._reversed_padding_repeated_twice = list(self._reversed_padding_repeated_twice)
        return conv.train(self.training)

    def _refuse_other_forwards(self) -> None:
        """Raises if ``forward`` may be more than the convolution with the dense kernel."""
        package = __name__.partition(".")[0]
        for name in ("forward", "_conv_forward"):
            definition = vars(self).get(name) or getattr(type(self), name)
            if getattr(definition, "__module__", "").partition(".")[0] != package:
                raise TypeError(
                    f"{type(self).__name__} has a {name} of its own, so that no plain convolution "
                    "is known to compute the same"
                )
        if self._forward_hooks or self._forward_pre_hooks:
            raise RuntimeError(
                f"{type(self).__name__} has forward hooks, which a plain convolution would not "
                "run; remove them first (torch.nn.utils.prune.remove, remove_weight_norm, ...)"
            )

    def _describe(self) -> Iterator[str]:
        """Yields the parts of ``extra_repr``."""
        yield f"{self.in_channels}, {self.out_channels}"
        yield f"kernel_count={self.kernel_count} ({self._count_note})"
        yield f"stride={self.stride}"
        yield f"version={self.version}"
        if self.padding != (0,) * len(self.stride):
            yield f"padding={self.padding}"
        if self.dense_kernel_size != (1,) * len(self.dense_kernel_size):
            yield f"dense_kernel_size={self.dense_kernel_size} (fixed)"
        if self.dilated_kernel_size != (1,) * len(self.dilated_kernel_size):
            yield f"dilated_kernel_size={self.dilated_kernel_size} (learnable)"
        if self.output_padding != (0,) * len(self.output_padding):
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
        """Returns the settings; those with a default only where they differ from it."""
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
