"""A linear connection whose values arrive later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy

from DCLS import _checks
from DCLS._types import Device, Method, Version
from DCLS.delays._base import InitDelays, _DelayLayer, positive
from DCLS.delays._ways import Matrix, bags
from DCLS.delays.step import Taps, of_channels
from DCLS.functional import construct_kernel, direct_conv, im2col_conv
from DCLS.method import Choice, choose, convolution_dtype
from DCLS.nn.builders import ConstructKernel1d
from DCLS.nn.editing import edit
from DCLS.nn.subclassing import _DclsNd

__all__ = ["DelayLinear"]

Sharing = Literal["synaptic", "axonal", "dendritic"]
_SHARING = ("synaptic", "axonal", "dendritic")


class DelayLinear(_DelayLayer, _DclsNd):
    """A linear connection whose values arrive ``delay`` steps later, a learned real number.

        output[t, o] = bias[o] + sum_{i,k} weight[o, i, k] * input[t - delay, i]

    with ``input`` interpolated between its steps as ``version`` says, and 0 before the first one.
    ``sharing`` says which connections have a delay in common: each has its own (``synaptic``), all
    from one input have one (``axonal``), or all to one output have one (``dendritic``).

    ``synaptic`` is a ``Dcls1d`` with causal padding, and its state dict is that of one. ``axonal``
    samples the input at the delays, as the im2col layers do. ``dendritic`` is a linear layer before
    a delay for each output.

    Attributes:
        weight: ``(out_features, in_features, count)``.
        P: the positions behind the delays: ``(1, out_features, in_features, count)``, ``(1,
            in_features, count)`` for ``axonal`` or ``(1, out_features, count)`` for ``dendritic``.
            ``delays()`` has the same shape without the first axis.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(out_features,)`` or None.
        mask: which connections exist, ``(out_features, in_features)``, a bool buffer in the state
            dict; None for all.

    Shape:
        ``(T, B, in_features)`` to ``(T, B, out_features)`` for the layout ``TBN``, ``(B, T, N)``
        for ``BTN``, ``(B, N, T)`` for ``BNT``; each also without ``B``.

    Example:
        >>> layer = DelayLinear(140, 256, max_delay=24)
        >>> layer(torch.randn(100, 8, 140)).shape
        torch.Size([100, 8, 256])
    """

    _ndim = _learnable_ndim = 1
    mask: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        max_delay: int,
        *,
        sharing: Sharing = "synaptic",
        count: int = 1,
        version: Version = "gauss",
        layout: Literal["TBN", "BTN", "BNT"] = "TBN",
        causal: bool = True,
        bias: bool = False,
        init_delays: InitDelays = "uniform",
        init_width: float | None = None,
        mask: Tensor | None = None,
        method: Method = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Creates the layer.

        Args:
            in_features: number of inputs.
            out_features: number of outputs.
            max_delay: the longest delay in steps, at least 0.
            sharing: ``synaptic`` (default), ``axonal`` or ``dendritic``, see the class.
            count: number of weights and delays of a connection; default 1.
            version: the interpolation, one of ``DCLS.VERSIONS``; default ``gauss``.
            layout: the order of the axes; default ``TBN``.
            causal: True (default) for delays from now on. False shifts the output by ``(max_delay
                + 1) // 2`` steps to earlier times, and there are no steps then.
            bias: whether the layer has a learnable bias; default False.
            init_delays: where the delays start: ``uniform`` (default) over all of them; a number; a
                tensor of the shape of ``delays()``, or one that broadcasts to it; or a function
                ``(delays, max_delay)``, which fills ``delays`` in place or returns others.
            init_width: ``SIG`` at the start; None (default) for the version's own. Only for a
                version with widths.
            mask: a bool tensor ``(out_features, in_features)``, True where there is a connection.
                The other weights are 0, also after training. None (default) for all.
            method: how the layer convolves, see ``Dcls1d``; default ``auto``. Only ``auto`` for
                ``axonal``.
            device: where to create the parameters; None (default) for torch's default.
            dtype: dtype of the parameters; None (default) for torch's default.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument is out of its range or has a wrong shape.
        """
        self.sharing = _checks.choice("sharing", sharing, _SHARING)
        inputs, outputs = (
            positive("in_features", in_features),
            positive("out_features", out_features),
        )
        _check_mask(mask, (outputs, inputs))
        self._set_up_delays(
            max_delay, count, layout, causal, init_delays, init_width, version, in_channels=inputs,
            out_channels=outputs, bias=bias, method=method, device=device, dtype=dtype,
        )  # fmt: skip
        if self.sharing != "axonal":
            # ``dendritic``: each output sums ``count`` channels, and each of these has a delay.
            sizes = (outputs, inputs, 1, count) if self._is_synaptic else (
                outputs, outputs * count, outputs, 1)  # fmt: skip
            self.DCK = ConstructKernel1d(*sizes, self.dilated_kernel_size, version)
        self.register_buffer("mask", None)
        if mask is not None:
            self.mask = mask.to(self.weight.device, copy=True)
            self._clear_unconnected(self.mask)

    def reset_parameters(self) -> None:
        """Draws new parameters as ``Dcls1d`` does; weights without a connection become 0."""
        super().reset_parameters()
        mask = self._buffers.get("mask")  # not there yet at the first start
        if mask is not None:
            self._clear_unconnected(mask)

    def _clear_unconnected(self, mask: Tensor) -> None:
        none = ~mask.unsqueeze(-1)
        edit(self, "weight", lambda weight: weight.masked_fill_(none, 0.0), exact=False)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.out_channels

    @property
    def method(self) -> Method:
        """How the layer convolves, see ``Dcls1d``. Only ``auto`` for ``axonal``."""
        return self._kept_method  # torch.compile takes no super() here

    @method.setter
    def method(self, value: Method) -> None:
        if self.__dict__.get("sharing") == "axonal":
            _checks.choice("method", value, ("auto",))
        _DclsNd.method.fset(self, value)  # type: ignore[attr-defined]

    @property
    def _is_synaptic(self) -> bool:
        return self.sharing == "synaptic"

    def _rows_shape(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        outputs, inputs, count = weight_shape
        shapes = {"axonal": (inputs, count), "dendritic": (outputs, count)}
        return shapes.get(self.sharing, (outputs, inputs, count))

    def _used_weight(self) -> Tensor:
        if self.mask is None or isinstance(self.weight, Proxy):
            return self.weight
        return torch.where(self.mask.unsqueeze(-1), self.weight, 0.0)

    def _dense_kernel(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        if self._is_synaptic:
            return super()._dense_kernel(weight, P, SIG)
        P, SIG = self._used_rows(P, SIG)
        axis = 1 if self.sharing == "axonal" else 2
        return construct_kernel(
            weight,
            P.unsqueeze(axis).expand(1, *weight.shape),
            None if SIG is None else SIG.unsqueeze(axis).expand(1, *weight.shape),
            dilated_kernel_size=self.dilated_kernel_size,
            version=self.version,
        )

    def _only_choice(self) -> Choice | None:
        if self.sharing == "axonal":
            return Choice("im2col", "the outputs share their delays: no kernel is built", "layer")
        return None

    def _choose(self, x: Tensor, padding: Any, *rest: Any) -> Choice:
        if self.sharing != "dendritic":
            return super()._choose(x, padding, *rest)
        if isinstance(x, Proxy):
            method = "direct" if self.method == "direct" else "conv"
            return Choice(method, "a symbolic trace knows no sizes", "default")
        dtype = convolution_dtype(x, self.weight)
        if dtype is None:
            return Choice("conv", "the dtypes of input and parameters differ", "default")
        batch = x.shape[0] if x.ndim == 3 else 1
        return choose(
            input_shape=(batch, self.out_channels * self.kernel_count, x.shape[-1]),
            out_channels=self.out_channels,
            groups=self.out_channels,
            kernel_size=self.dilated_kernel_size,
            cells=self._expected_cells(),
            training=self._trains([self.weight, self.P]),
            dtype=dtype,
            device_type=x.device.type,
            method=self.method,
        )

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        if self._is_synaptic:
            return super()._conv_forward(input, weight, bias, P, SIG)
        P, SIG = self._used_rows(P, SIG)
        if self.sharing == "axonal":
            batched = isinstance(input, Proxy) or self._is_batched(input)
            x, padding = self._pad(input if batched else input.unsqueeze(0))
            output: Tensor = im2col_conv(
                x,
                weight,
                bias,
                P,
                SIG,
                dilated_kernel_size=self.dilated_kernel_size,
                padding=padding,
                version=self.version,
            )
            return output if batched else output.squeeze(0)
        # Delays of an output and the sum over inputs commute: the sum, first, has no delays.
        sums = F.conv1d(input, weight.transpose(1, 2).flatten(0, 1).unsqueeze(-1))
        x, padding = self._pad(sums)
        kernel = self._output_kernel(P, SIG)
        convolve = F.conv1d if self._choose(x, padding).method == "conv" else direct_conv
        delayed: Tensor = convolve(x, kernel, bias, 1, padding, groups=self.out_channels)
        return delayed

    def _output_kernel(self, P: Tensor, SIG: Tensor | None) -> Tensor:
        """Builds the kernel of the delays of each output, ``(out_features, count, S)``."""
        kernel: Tensor = self.DCK(torch.ones_like(P[0]).unsqueeze(-1), *of_channels(P, SIG))
        return kernel

    def _state_shape(self, batch: int, space: Sequence[int] = ()) -> tuple[int, ...]:  # noqa: ARG002
        axonal = self.sharing == "axonal"
        return (
            self.max_delay,
            self.in_channels * self.kernel_count if axonal else self.out_channels,
            batch,
        )

    def _make_taps(self) -> Taps:
        weight, delays = self._used_weight(), self._whole_delays()
        if self.sharing == "axonal":
            # Each delay of an input is a channel of its own.
            P, SIG = self._used_rows()
            send = self._channel_taps(
                None if delays is None else delays.reshape(-1, 1),
                P.reshape(1, -1, 1),
                None if SIG is None else SIG.reshape(1, -1, 1),
            )
            return Taps(self._copies(weight), send, weight.flatten(1))
        if not self._is_synaptic:
            send = self._channel_taps(delays, *self._used_rows())
            return Taps(weight.transpose(1, 2).flatten(0, 1), send, None)
        if delays is not None:
            return Taps(None, bags(delays, weight, self.max_delay + 1, self._gain()), None)
        kernel = self._dense_kernel(weight, self.P, self.SIG).to(weight.dtype)
        return Taps(None, Matrix(kernel.flip(-1).permute(2, 0, 1).flatten(0, 1)), None)

    def _copies(self, weight: Tensor) -> Tensor | None:
        """Returns the matrix that makes ``count`` channels of each input; None for one of each."""
        if self.kernel_count == 1:
            return None
        eye = torch.eye(self.in_channels, dtype=weight.dtype, device=weight.device)
        return eye.repeat_interleave(self.kernel_count, 0)

    def _describe(self) -> Iterator[str]:
        yield f"{self.in_channels}, {self.out_channels}"
        if not self._is_synaptic:
            yield f"sharing={self.sharing}"
        yield from self._describe_delays()
        if self.mask is not None:
            count = "some" if self.mask.is_meta else int(self.mask.sum())
            yield f"mask={count} of {self.mask.numel()} connections"


def _check_mask(mask: object, shape: tuple[int, int]) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool Tensor or None, got {got}")
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"mask must have the shape {shape}, that is (out_features, in_features), got "
            f"{tuple(mask.shape)}"
        )
