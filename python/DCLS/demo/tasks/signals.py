"""Where does a sound come from? Generated data: noise that reaches one ear later than the other.

A neuron that sums both ears, each at its own delay, responds most to the sounds whose difference in
time its delays undo (Jeffress 1948). So the delays are what has to be learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from DCLS.delays import DelayLinear
from DCLS.demo.tasks.base import Connections, Data, DelayTask, Kind, Recipe, Split

STEPS = 64
#: The differences in time of the directions, in steps: what arrives at the right ear, less what
#: arrives at the left one.
DIFFERENCES = tuple(range(-8, 9, 2))
NOISE = 0.5
COUNTS = {"train": 900, "validation": 450, "test": 1800}
TEST_SEED = 2**40


def generate(count: int, seed: int) -> Split:
    """Generates sounds ``(count, STEPS, 2)``, left and right ear, float64, and their directions.

    A sound is noise of up to an eighth of the frequencies, of variance 1. Each ear adds white noise
    of its own. The shift is exact, and cyclic: it multiplies the Fourier transform.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(DIFFERENCES), (count,), generator=generator)
    half = torch.tensor(DIFFERENCES, dtype=torch.float64)[labels] / 2
    frequencies = torch.fft.rfftfreq(STEPS, dtype=torch.float64)
    spectrum = torch.fft.rfft(torch.randn(count, STEPS, dtype=torch.float64, generator=generator))
    spectrum = spectrum * (frequencies <= 1 / 8) * (frequencies > 0)
    shifts = torch.stack([-half, half], 1)  # of the left and the right ear
    turn = torch.exp(-2j * math.pi * frequencies * shifts.unsqueeze(-1))
    ears = torch.fft.irfft(spectrum.unsqueeze(1) * turn, STEPS)
    ears = ears / ears.std((1, 2), keepdim=True)
    ears = ears + NOISE * torch.randn(ears.shape, dtype=torch.float64, generator=generator)
    return Split(ears.transpose(1, 2).contiguous(), labels)


class Ears(nn.Module):
    """Neurons that sum both ears, their mean energy, and a linear classifier."""

    def __init__(self, delays: DelayLinear) -> None:
        super().__init__()
        self.delays = delays
        self.norm = nn.LayerNorm(delays.out_features)
        self.head = nn.Linear(delays.out_features, len(DIFFERENCES))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, T, 2)`` to the scores of the directions, ``(B, 9)``."""
        sums = self.delays(x)[:, self.delays.max_delay :]  # from where all delays have arrived
        scores: Tensor = self.head(self.norm(sums.square().mean(1)))
        return scores


class Signals(DelayTask):
    """Nine directions of a generated sound."""

    title = "generated sounds from nine directions"
    learned = "when to listen to each ear"
    recipe = Recipe(
        epochs=40, batch_size=50, lr=1e-2, position_lr_scale=10, weight_decay=1e-4, first_width=3
    )  # fmt: skip
    max_delay, neurons = 12, 18
    fixed_delays: ClassVar[Mapping[Kind, Sequence[int]]] = {"fixed": (0, 8), "plain": (0, 1)}

    def load(self, seed: int) -> Data:
        """Generates the data; training and validation anew for each seed."""
        return Data(
            generate(COUNTS["train"], 2 * seed),
            generate(COUNTS["validation"], 2 * seed + 1),
            generate(COUNTS["test"], TEST_SEED),
        )

    def build(self, connections: Connections, neurons: int) -> nn.Module:
        """Returns the network."""
        return Ears(connections(2, neurons, bias=False))
