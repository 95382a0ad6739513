"""Kernels that are kept between forwards, for inference."""

from __future__ import annotations

from torch.nn import Module

from DCLS._checks import flag
from DCLS.nn.frozen import KernelCache
from DCLS.toolkit._layers import dcls_layers

__all__ = ["freeze"]


def freeze(model: Module, enabled: bool = True) -> Module:
    """Lets the DCLS layers of a model keep their kernels between forwards, for inference.

    The layers stay as they are, with positions that can be trained or edited later. A layer keeps
    its kernel while no gradient of its parameters is wanted: under ``torch.no_grad`` or
    ``torch.inference_mode``, or with ``requires_grad_(False)``. Before each use it compares the
    values of its parameters with those that the kernel was built from, so that no edit is missed:
    neither an assignment, nor ``.data``, nor ``load_state_dict``, nor another ``version``. On a GPU
    the comparison waits for the device. What torch traces or compiles, and layers whose ``DCK`` has
    hooks or a ``forward`` of the user, build their kernels each time.

    On a CPU the direct convolution also keeps the lists of the kernel's cells, for the size of the
    last input: on small maps they are a good part of a forward.

    A kernel needs as much memory as a dense convolution has for its weight, and the lists about
    twice as much. Im2col layers have no kernel and stay as they are. For a model that needs no
    positions any more see ``DCLS.fold``.

    Args:
        model: any module, which may itself be a DCLS layer.
        enabled: False drops the kernels and builds them at each forward again; default True.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module, or ``enabled`` is no bool.
        ValueError: ``model`` has no DCLS layer.
    """
    layers = dcls_layers(model, at_least_one=True)
    enabled = flag("enabled", enabled)
    for _, layer in layers:
        layer._kernel_cache = KernelCache() if enabled else None
    return model
