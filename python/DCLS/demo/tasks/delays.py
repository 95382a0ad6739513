"""Who speaks? Nine men say /ae/, and a small network with delays tells them apart.

The data is JapaneseVowels (Kudo, Toyama, Shimbo 1999, UCI), from the files in the package sktime.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from DCLS.demo.tasks.base import Connections, Data, DelayTask, Kind, Recipe, Split, hold_out

COEFFICIENTS, SPEAKERS = 12, 9


class Vowels(nn.Module):
    """Two layers of connections with delays, and the mean over the utterance.

    Args:
        connections: makes the layers.
        neurons: between them.
    """

    def __init__(self, connections: Connections, neurons: int) -> None:
        super().__init__()
        self.first = connections(COEFFICIENTS, neurons)
        self.second = connections(neurons, SPEAKERS)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, T, 13)`` to the scores of the speakers, ``(B, 9)``.

        The last input is 1 up to the end of the utterance, 0 behind it.
        """
        sound, inside = x[..., :-1], x[..., -1:]
        hidden = self.dropout(torch.tanh(self.first(sound)))
        scores: Tensor = (self.second(hidden) * inside).sum(1) / inside.sum(1)
        return scores


def read(path: Path) -> tuple[list[Tensor], Tensor]:
    """Reads a file of the format ts: the utterances ``(T, 12)``, float64, and their speakers.

    Below ``@data`` a line is an utterance. Its coefficients and, last, its speaker from 1 to 9 have
    colons between them, and the steps of a coefficient commas.
    """
    sounds, speakers = [], []
    for line in path.read_text(encoding="utf-8").partition("@data\n")[2].splitlines():
        *series, speaker = line.split(":")
        rows = [[float(value) for value in row.split(",")] for row in series]
        sounds.append(torch.tensor(rows, dtype=torch.float64).T)
        speakers.append(int(speaker) - 1)
    return sounds, torch.tensor(speakers)


class Delays(DelayTask):
    """The vowels of nine speakers: 270 utterances for training, 370 for test."""

    title = "spoken vowels of nine speakers"
    learned = "how far back to listen"
    packages: ClassVar[Mapping[str, str]] = {"sktime": "sktime"}
    recipe = Recipe(
        epochs=60, batch_size=32, lr=5e-3, position_lr_scale=20, weight_decay=1e-4, first_width=4.5
    )  # fmt: skip
    max_delay, neurons = 8, 32
    fixed_delays: ClassVar[Mapping[Kind, Sequence[int]]] = {"fixed": (0, 4), "plain": (0, 1)}

    def load(self, seed: int) -> Data:
        """Loads 12 LPC coefficients at 7 to 29 steps, scaled as the training steps need it."""
        # find_spec imports nothing: sktime needs seconds for that.
        spec = importlib.util.find_spec("sktime")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        folder = Path(spec.submodule_search_locations[0], "datasets", "data", "JapaneseVowels")
        files = [read(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST")]
        variance, mean = torch.var_mean(torch.cat(files[0][0]), 0)
        training, test = (
            Split(
                pad_sequence(
                    [
                        torch.cat([(sound - mean) / variance.sqrt(), torch.ones(len(sound), 1)], 1)
                        for sound in sounds
                    ],
                    batch_first=True,
                ),
                speakers,
            )
            for sounds, speakers in files
        )
        return Data(*hold_out(training, seed), test)

    def build(self, connections: Connections, neurons: int) -> nn.Module:
        """Returns the network."""
        return Vowels(connections, neurons)
