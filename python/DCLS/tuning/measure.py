"""Measures a problem on the device where it will run."""

from __future__ import annotations

import math
from typing import Final

import torch

from DCLS._cpu_rule import TORCH_ERRS, TORCH_HANGS, torch_errs, torch_hangs
from DCLS._threads import in_a_thread
from DCLS.tuning import facts
from DCLS.tuning.candidates import CudaClock, HostClock, Synthetic, bytes_needed, output_size
from DCLS.tuning.decide import LIMITS, Decision, Limits, Trial, decide
from DCLS.tuning.problem import Problem

#: The part of the free memory that a measurement may take.
MEMORY_PART: Final = 0.5


def measure(problem: Problem, batch: int, width: float | None, limits: Limits = LIMITS) -> Decision:
    """Runs the candidates on synthetic tensors and decides.

    Args:
        problem: the layer and its input.
        batch: images of the input. Fewer are taken where they do not fit in the memory.
        width: ``abs(SIG)`` of the elements; None for that of a new layer.
        limits: the budget.

    Returns:
        The decision; none is taken where not even one image fits, and where torch's convolution is
        not right, with which the others are compared.
    """
    device = problem.geometry.device
    if batch < 1 or min(output_size(problem)) < 1:
        return Decision(None, {})
    if why_not := _torch_errs(problem):
        return Decision(None, {"conv": Trial(math.inf, why_not)})
    room = MEMORY_PART * facts.free_memory(device)
    while batch > 1 and bytes_needed(problem, batch) > room:
        batch = math.ceil(batch / 2)
    if bytes_needed(problem, batch) > room:
        return Decision(None, {})

    def run() -> Decision:
        if device.type != "cuda":
            return _decide(problem, batch, width, HostClock(), limits)
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            return _decide(problem, batch, width, CudaClock(), limits)

    return in_a_thread(run)


def _torch_errs(problem: Problem) -> str:
    """Returns why torch's convolution is not measured; empty where it is."""
    g = problem.geometry
    if g.device_type != "cpu":
        return ""
    if g.grad_kernel and torch_errs(g.kernel_size, problem.spatial, g.padding, g.dtype):
        return TORCH_ERRS
    depthwise = g.groups == g.in_channels
    if depthwise and torch_hangs(g.in_channels, g.kernel_size, g.channels_last, g.dtype):
        return TORCH_HANGS
    return ""


def _decide(
    problem: Problem, batch: int, width: float | None, clock: HostClock, limits: Limits
) -> Decision:
    try:
        synthetic = Synthetic(problem, batch, width)
    except RuntimeError as error:
        if not facts.is_out_of_memory(error):
            raise
        return Decision(None, {})
    return decide(
        synthetic.steps(), "conv", clock, synthetic.differs, facts.is_out_of_memory, limits
    )
