"""Dilated Convolution with Learnable Spacings (DCLS) for PyTorch."""

try:
    # Before the native library: torch's wheels carry the OpenMP runtime that both must share.
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "DCLS needs PyTorch, which is not installed. Install it as https://pytorch.org says, "
        "for example with: pip install torch",
        name="torch",
    ) from None

from DCLS import cmake, construct, delays, functional, im2col, losses, method, plot, reference

# Not in __all__: it would take the place of the user's own torch.nn.
from DCLS import nn as nn
from DCLS._moved import keep_old_paths as _keep_old_paths
from DCLS._spec import VERSIONS
from DCLS._version import __version__
from DCLS.convert import convert_, is_depthwise
from DCLS.functional import construct_kernel
from DCLS.nn import *  # noqa: F403
from DCLS.nn import __all__ as _layer_names
from DCLS.nn.fold import fold
from DCLS.toolkit.clamping import clamp_, clamp_after_step, lost_elements
from DCLS.toolkit.freezing import freeze
from DCLS.toolkit.groups import param_groups
from DCLS.toolkit.rounding import integer_positions, round_
from DCLS.toolkit.schedule import WidthSchedule
from DCLS.toolkit.tracker import PositionTracker
from DCLS.tuning import get_tuning, set_tuning, tune

__all__ = [
    "VERSIONS",
    "PositionTracker",
    "WidthSchedule",
    "__version__",
    "clamp_",
    "clamp_after_step",
    "cmake",
    "construct",
    "construct_kernel",
    "convert_",
    "delays",
    "fold",
    "freeze",
    "functional",
    "get_tuning",
    "im2col",
    "integer_positions",
    "is_depthwise",
    "losses",
    "lost_elements",
    "method",
    "param_groups",
    "plot",
    "reference",
    "round_",
    "set_tuning",
    "tune",
]
__all__ += _layer_names

_keep_old_paths()
