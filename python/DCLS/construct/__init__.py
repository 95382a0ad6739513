"""DCLS by construction of the dense kernel."""

from DCLS.construct.modules import *  # noqa: F403
from DCLS.construct.modules import __all__ as __all__
