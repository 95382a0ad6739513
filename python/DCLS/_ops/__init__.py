"""The torch operators of namespace ``dcls``.

The operators check their arguments themselves, so that calling ``torch.ops.dcls`` directly is as
safe as calling ``DCLS.functional``.
"""

from __future__ import annotations

from DCLS._ops import _kept
from DCLS._ops import flops as flops
from DCLS._ops.construct import call_construct as call_construct
from DCLS._ops.construct import (
    construct_kernel,
    construct_kernel_backward,
    construct_support,
)
from DCLS._ops.conv import direct_conv, direct_conv_backward
from DCLS._ops.im2col import im2col, im2col_backward
from DCLS._ops.im2col_conv import im2col_conv, im2col_conv_backward
from DCLS._ops.layer import layer, layer_backward

_kept.keep()

__all__ = [
    "construct_kernel",
    "construct_kernel_backward",
    "construct_support",
    "direct_conv",
    "direct_conv_backward",
    "im2col",
    "im2col_backward",
    "im2col_conv",
    "im2col_conv_backward",
    "layer",
    "layer_backward",
]
