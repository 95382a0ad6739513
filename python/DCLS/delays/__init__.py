"""Layers with learned delays, for spiking and audio networks.

``DelayLinear`` is a connection with delays, ``Delay`` a delay for each channel, ``DelayConv1d`` and
``DelayConv2d`` convolutions with delays. They take whole sequences, or one step at a time with the
state as a tensor.
"""

from DCLS.delays.conv import DelayConv1d, DelayConv2d
from DCLS.delays.delay import Delay
from DCLS.delays.export import Connections, nir_node, to_arrays, to_nir
from DCLS.delays.linear import DelayLinear
from DCLS.delays.step import Taps, unroll

__all__ = [
    "Connections",
    "Delay",
    "DelayConv1d",
    "DelayConv2d",
    "DelayLinear",
    "Taps",
    "nir_node",
    "to_arrays",
    "to_nir",
    "unroll",
]
