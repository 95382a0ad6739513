"""The older import path of the modules."""

from DCLS.construct.modules import *  # noqa: F403
from DCLS.construct.modules import __all__ as __all__
