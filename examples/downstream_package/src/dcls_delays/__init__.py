"""Learnable delays for time series, on top of DCLS."""

# Before _core: DCLS loads libdcls, which _core then finds by its name.
from DCLS import Dcls1d  # isort: skip

import torch
from torch import Tensor

from dcls_delays import _core

__all__ = ["Delays1d"]


class Delays1d(Dcls1d):
    """A causal ``Dcls1d``: each element sees its input with a real-valued, learnable delay.

    ``delays()`` of the layer gives these in time steps. At the start they are spread from 0 to
    ``max_delay``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        max_delay: largest delay, in time steps, at least 1.
        kernel_count: elements, hence delays, for each pair of channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, max_delay: int, kernel_count: int = 1
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_count=kernel_count,
            dilated_kernel_size=max_delay + 1,
            version="gauss",
            init_positions="spread",
        )

    def forward(self, input: Tensor) -> Tensor:
        """Maps (batch, in_channels, time) to (batch, out_channels, time), from the past alone."""
        past = self.dilated_kernel_size[0] - 1
        return super().forward(torch.nn.functional.pad(input, (past, 0)))

    def density(self, out_channel: int, in_channel: int) -> list[float]:
        """Returns how the elements of one pair of channels spread over the time steps."""
        pair = (0, out_channel, in_channel)
        return _core.density(
            self.P[pair].tolist(), self.SIG[pair].tolist(), self.dilated_kernel_size[0], 0.27
        )
