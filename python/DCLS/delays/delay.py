"""A delay for each channel, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Proxy

from DCLS import _checks
from DCLS._types import Device, Method, Version
from DCLS.delays._base import InitDelays, _DelayLayer, positive
from DCLS.delays.step import Taps, of_channels
from DCLS.nn.builders import ConstructKernel1d
from DCLS.nn.editing import edit, on_whole
from DCLS.nn.initial import initial_width
from DCLS.nn.subclassing import _DclsNd

__all__ = ["Delay"]


class Delay(_DelayLayer, _DclsNd):
    """Delays each channel by its own real number of steps, and changes nothing else.

    What ``snntorch.SynapticDelay`` does, with a fast kernel and an explicit state. ``max_delay``,
    ``delay``, ``channels`` and ``learn_delay`` mean the same there. Its ``kernel="linear"`` is
    ``version="v1"`` here, and its ``kernel="gaussian"`` with ``sigma`` is ``version="gauss"`` with
    ``init_width = sigma - 0.27``.

    Attributes:
        P: the positions behind the delays, ``(1, channels, 1)``, see ``delays()``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        weight: ones; no parameter, and not in the state dict.

    Shape:
        ``(T, B, channels)`` for the layout ``TBN``, ``(B, T, channels)`` for ``BTN``, ``(B,
        channels, T)`` for ``BNT``, each also without ``B``; the output has the same.

    Example:
        >>> delay = Delay(128, max_delay=24)
        >>> delay(torch.randn(100, 8, 128)).shape
        torch.Size([100, 8, 128])
    """

    _ndim = _learnable_ndim = 1
    _builder = ConstructKernel1d
    _delays_name = "delay"

    def __init__(
        self,
        channels: int,
        max_delay: int,
        delay: InitDelays = "uniform",
        *,
        learn_delay: bool = True,
        version: Version = "gauss",
        layout: Literal["TBN", "BTN", "BNT"] = "TBN",
        causal: bool = True,
        init_width: float | None = None,
        method: Method = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Creates the layer.

        Args:
            channels: number of channels.
            max_delay: the longest delay in steps, at least 0.
            delay: where the delays start: ``uniform`` (default) over all of them; a number; a
                tensor with one for each channel; or a function ``(delays, max_delay)``, which fills
                ``delays`` of the shape ``(channels, 1)`` in place or returns others.
            learn_delay: whether delays and widths are trained; default True.
            version: the interpolation, one of ``DCLS.VERSIONS``; default ``gauss``.
            layout: the order of the axes; default ``TBN``.
            causal: True (default) for delays from now on. False shifts the output by ``(max_delay
                + 1) // 2`` steps to earlier times.
            init_width: ``SIG`` at the start; None (default) for the version's own. Only for a
                version with widths.
            method: how the layer convolves, see ``Dcls1d``; default ``auto``.
            device: where to create the parameters; None (default) for torch's default.
            dtype: dtype of the parameters; None (default) for torch's default.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument is out of its range.
        """
        width = positive("channels", channels)
        self.learn_delay = _checks.flag("learn_delay", learn_delay)
        self._set_up_delays(
            max_delay, 1, layout, causal, delay, init_width, version, in_channels=width,
            out_channels=width, groups=width, bias=False, method=method, device=device, dtype=dtype,
        )  # fmt: skip

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.in_channels

    def _make_parameters(self, bias: object, device: Any, dtype: object) -> None:
        super()._make_parameters(bias, device, dtype)
        weight = torch.ones_like(self.weight.detach())
        del self.weight
        self.register_buffer("weight", weight, persistent=False)
        for parameter in (self.P, self.SIG):
            if parameter is not None:
                parameter.requires_grad_(self.learn_delay)

    def reset_parameters(self) -> None:
        """Draws new delays, as ``delay`` said, and sets the widths to ``init_width``."""
        self._fill_weight()
        edit(self, "P", on_whole(self._draw_rows), exact=False)
        if self.SIG is not None:
            width = initial_width(self.version, self.init_widths)
            edit(self, "SIG", on_whole(lambda SIG: SIG.fill_(width)), exact=False)

    def _fill_weight(self) -> None:
        """Makes the weights ones on the device of ``P``: no state dict has them."""
        if self.weight.device != self.P.device:
            self.weight = torch.empty_like(self.weight, device=self.P.device)
        with torch.no_grad():
            self.weight.fill_(1)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        # They have no values yet after ``to_empty``, and no memory where tensors are assigned.
        self._fill_weight()

    def _start(self, delays: Tensor, shape: torch.Size) -> Tensor:
        return super()._start(delays.unsqueeze(-1) if delays.ndim == 1 else delays, shape)

    def delays(self) -> Tensor:
        """Returns the delays in steps, ``(channels,)``, differentiable in ``P``."""
        return super().delays().squeeze(-1)

    def set_delays(self, delays: Tensor) -> None:
        """Sets the delays in place.

        Args:
            delays: real numbers, ``(channels,)`` or one for all.

        Raises:
            TypeError: ``delays`` is no tensor of real numbers.
            ValueError: its shape does not fit.
            RuntimeError: the next forward would undo the edit, see ``clamp_parameters``.
        """
        one_each = isinstance(delays, Tensor) and delays.ndim == 1
        super().set_delays(delays.unsqueeze(-1) if one_each else delays)

    def _rows_shape(self, weight_shape: Any) -> tuple[int, ...]:
        return (weight_shape[0], 1)

    def _dense_kernel(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        # In a forward pass they have this shape already.
        if not isinstance(P, Proxy) and P.ndim == self.P.ndim:
            P, SIG = of_channels(P, SIG)
        return super()._dense_kernel(weight, P, SIG)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        return super()._conv_forward(input, weight, bias, *of_channels(P, SIG))

    def _state_shape(self, batch: int, space: Sequence[int] = ()) -> tuple[int, ...]:  # noqa: ARG002
        return (self.max_delay, self.in_channels, batch)

    def _make_taps(self) -> Taps:
        send = self._channel_taps(self._whole_delays(), *self._used_rows())
        return Taps(None, send, None)

    def _describe(self) -> Iterator[str]:
        yield f"{self.in_channels}"
        yield from self._describe_delays()
        if not self.learn_delay:
            yield "learn_delay=False"
