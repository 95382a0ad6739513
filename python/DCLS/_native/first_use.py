"""The first use of a GPU in a process: one tiny kernel is compared with the reference.

Nobody here has run the kernels on every GPU there is. A GPU, a driver or a build on which they give
other numbers should say so at once, and not by a training that fails.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from DCLS._threads import in_a_thread

logger: Final = logging.getLogger("DCLS")

#: The norm of the error, over that of the kernel. Float32 rounds to less than a hundredth of it.
TOLERANCE: Final = 1e-5

#: Whether the comparison is still to come.
pending = True

_lock = threading.Lock()

#: Arguments as of ``DCLS._native.dense.construct``.
Construct = Callable[..., Tensor]


def before_use(device: torch.device, construct: Construct) -> None:
    """Compares if this is the first use that allows it: not in a capture, and not if it is off."""
    global pending
    if torch.cuda.is_current_stream_capturing():
        return  # it would wait for the device; the next use does it
    with _lock:
        if not pending:
            return
        pending = False
    # Only now: the package is complete.
    from DCLS.tuning import state

    if state.get_mode() != "off":
        compare(device, construct)


def compare(device: torch.device, construct: Construct) -> None:
    """Builds a small kernel on a device and warns if it is not that of the reference.

    Args:
        device: where to build.
        construct: builds it.
    """
    from DCLS import reference

    def measure() -> float:
        # Of exact numbers: no random one is drawn.
        weight = torch.tensor([[1.5, -2.0, 0.25], [-0.5, 1.0, 3.0]], device="cpu")
        rows = [[[-1.3, 0.4, 2.0], [0.0, -2.2, 1.1]], [[0.7, -0.9, 1.6], [2.3, -1.0, -0.1]]]
        P = torch.tensor(rows, dtype=torch.float32, device="cpu")
        tensors = [weight.float(), P, 0.2 + P.abs() / 4]
        size, version, sigma_min = (5, 7), "gauss", 0.27
        on_device = [tensor.to(device) for tensor in tensors]
        got = construct(*on_device, size, version, sigma_min).cpu().double()
        exact = [tensor.double() for tensor in tensors]
        expected = reference.construct_kernel(
            *exact, dilated_kernel_size=size, version=version, sigma_min=sigma_min
        )
        return float((got - expected).norm() / expected.norm())

    try:
        distance = in_a_thread(measure)
    except Exception as error:
        # The call that comes next meets the same, and says it better.
        logger.debug("the first kernel on %s could not be built: %s", device, error)
        return
    if not distance <= TOLERANCE:  # NaN, too
        warnings.warn(
            f"The first kernel that DCLS built on {device} differs from the reference by "
            f"{distance:.1e} in norm, where {TOLERANCE:.0e} is allowed. Do not trust results of "
            "DCLS on this device. Please report this, with the file of 'dcls check --output FILE'.",
            RuntimeWarning,
            stacklevel=2,
        )
