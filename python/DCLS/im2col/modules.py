"""Convolutions that sample their input at learnable positions, and never build a kernel."""

from DCLS.nn.im2col import *  # noqa: F403
from DCLS.nn.im2col import __all__ as __all__
