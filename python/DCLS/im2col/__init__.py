"""DCLS by sampling the input: no kernel is built."""

from DCLS.im2col.modules import *  # noqa: F403
from DCLS.im2col.modules import __all__ as __all__
