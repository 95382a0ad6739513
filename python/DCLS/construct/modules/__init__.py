"""Convolutions that build their dense kernel from weights and learnable positions."""

from DCLS.nn import *  # noqa: F403
from DCLS.nn import __all__ as __all__
