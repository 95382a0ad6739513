"""The older import path of ``DCLS.im2col.modules``."""

from DCLS.im2col.modules import *  # noqa: F403
from DCLS.im2col.modules import __all__ as __all__
