"""Trains a small network with learned delays to tell nine speakers apart by their vowels.

    pip install --no-deps aeon
    python examples/spoken_vowels/train.py

The data is JapaneseVowels (Kudo, Toyama, Shimbo 1999, UCI): nine men say /ae/. Each of the 270
utterances for training and 370 for test has 12 LPC coefficients at 7 to 29 steps. The wheel of aeon
has its files. They are read as they are, so that nothing of what aeon needs has to be installed.
``--data DIR`` takes another folder with them.

Each connection has a delay. The widths follow the delays paper (arXiv 2306.17670): they start at
half of the kernel, shrink exponentially to 0.23 in the first quarter of the training, and
evaluation is with whole delays. The sizes and rates are this example's own; the paper did not use
this data.

Run with seeds 0 to 3, on a CPU: 97.5 +- 0.6 % of the test utterances. With ``--max-delay 0``, so
without delays and with half of the parameters: 95.7 +- 0.6 %. Not run: other sizes and rates, and
networks without delays that have as many parameters.

To copy are ``train``, and the end of ``main``, where the delays become integers.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import DCLS
from DCLS.delays import DelayLinear, to_arrays

COEFFICIENTS, SPEAKERS = 12, 9
NAMES = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")


class Speech(NamedTuple):
    """Utterances ``(T, B, 12)``, zeros after their ends; their lengths and speakers ``(B,)``."""

    sounds: Tensor
    lengths: Tensor
    speakers: Tensor

    def part(self, chosen: Tensor) -> Speech:
        """Returns the utterances of these numbers."""
        return Speech(self.sounds[:, chosen], self.lengths[chosen], self.speakers[chosen])


def find_data(given: Path | None) -> Path:
    """Returns the folder of the files: the given one, or that in the package aeon."""
    folders = [given] if given else []
    if not given and (aeon := importlib.util.find_spec("aeon")):  # finds, and imports nothing
        roots = aeon.submodule_search_locations or ()
        folders = [Path(root, "datasets", "data", "JapaneseVowels") for root in roots]
    for folder in folders:
        if all((folder / name).is_file() for name in NAMES):
            return folder
    if given:
        raise SystemExit(f"{given} has no {' and '.join(NAMES)}")
    raise SystemExit("this example needs the data in aeon: pip install --no-deps aeon, or --data")


def read(path: Path) -> Speech:
    """Reads a file of the format ts.

    Below ``@data`` a line is an utterance. Its coefficients and, last, its speaker from 1 to 9 have
    colons between them, and the steps of a coefficient commas.
    """
    _, found, data = path.read_text().partition("@data\n")
    sounds, speakers = [], []
    for line in data.splitlines():
        *series, speaker = line.split(":")
        sounds.append(torch.tensor([[float(x) for x in row.split(",")] for row in series]).T)
        speakers.append(int(speaker) - 1)
    if not found or not sounds or any(sound.shape[1] != COEFFICIENTS for sound in sounds):
        raise SystemExit(f"{path} has no utterances of {COEFFICIENTS} coefficients")
    lengths = torch.tensor([len(sound) for sound in sounds])
    return Speech(pad_sequence(sounds), lengths, torch.tensor(speakers))


class Network(nn.Module):
    """Two layers with delays."""

    def __init__(self, data: Speech, hidden: int, max_delay: int) -> None:
        """Creates the network. It scales its inputs as ``data`` needs it."""
        super().__init__()
        steps = data.sounds[inside(data)]
        self.register_buffer("mean", steps.mean(0))
        self.register_buffer("scale", 1 / steps.std(0))
        self.first = DelayLinear(COEFFICIENTS, hidden, max_delay, bias=True)
        self.second = DelayLinear(hidden, SPEAKERS, max_delay, bias=True)
        for layer in (self.first, self.second):
            layer.SIG.requires_grad_(False)  # the schedule alone sets the widths

    def forward(self, data: Speech) -> Tensor:
        """Returns the scores of the speakers, ``(B, 9)``: the mean over the steps of each."""
        real = inside(data).unsqueeze(-1)
        x = torch.where(real, (data.sounds - self.mean) * self.scale, 0)
        x = F.dropout(torch.tanh(self.first(x)), 0.2, self.training)
        return torch.where(real, self.second(x), 0).sum(0) / data.lengths.unsqueeze(-1)


def inside(data: Speech) -> Tensor:
    """Says which steps are before the end of the utterance, ``(T, B)`` bool."""
    return torch.arange(len(data.sounds)).unsqueeze(-1) < data.lengths


@torch.no_grad()
def accuracy(model: nn.Module, data: Speech) -> float:
    """Returns the part of the utterances whose speaker is found."""
    model.eval()
    return int((model(data).argmax(1) == data.speakers).sum()) / len(data.speakers)


def train(model: Network, data: Speech, validation: Speech, args: argparse.Namespace) -> None:
    """Trains a network in place."""
    groups = DCLS.param_groups(model, args.lr, weight_decay=1e-4, position_lr_scale=20)
    optimizer = torch.optim.AdamW(groups)
    DCLS.clamp_after_step(optimizer, model)  # delays stay from 0 to max_delay
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    widths = DCLS.WidthSchedule(model, start=(args.max_delay + 1) / 2, steps=args.epochs // 4)
    start = model.first.delays().detach().clone()
    for epoch in range(1, args.epochs + 1):
        model.train()
        for chosen in torch.randperm(len(data.speakers)).split(args.batch_size):
            batch = data.part(chosen)
            loss = F.cross_entropy(model(batch), batch.speakers, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rates.step()
        widths.step()
        if epoch % max(1, args.epochs // 10) == 0:
            with DCLS.integer_positions(model):
                found = accuracy(model, validation)
            moved = (model.first.delays() - start).abs().mean().item()
            print(
                f"epoch {epoch:3}  SIG {widths.value:5.2f}  loss {loss.item():.4f}  "
                f"validation {found:.2%}  delays moved {moved:.2f} steps"
            )


def main(argv: Sequence[str] | None = None) -> float:
    """Trains as the command line says, and returns the accuracy on the test set."""
    parser = argparse.ArgumentParser(description="Learned delays on the vowels of nine speakers.")
    parser.add_argument("--data", type=Path, help="folder of the .ts files (default: that in aeon)")
    parser.add_argument("--epochs", type=int, default=60, help="at least 4 (default: 60)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: 32)")
    parser.add_argument("--hidden", type=int, default=32, help="neurons (default: 32)")
    parser.add_argument("--max-delay", type=int, default=8, help="steps (default: 8)")
    parser.add_argument("--lr", type=float, default=5e-3, help="(default: 5e-3)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--save", type=Path, help="folder for connections with weights and delays")
    args = parser.parse_args(argv)
    if args.save and not args.save.is_dir():
        parser.error(f"--save must be a folder that exists, got {args.save}")
    if args.epochs < 4:
        parser.error("--epochs must be at least 4: the widths shrink in the first quarter")

    torch.manual_seed(args.seed)
    folder = find_data(args.data)
    data = read(folder / NAMES[0])
    order = torch.randperm(len(data.speakers))
    held_out = len(order) // 5
    rest = data.part(order[held_out:])
    model = Network(rest, args.hidden, args.max_delay)
    train(model, rest, data.part(order[:held_out]), args)

    DCLS.round_(model)  # whole delays, for good
    if args.save:
        for name in ("first", "second"):
            np.savez(args.save / f"{name}.npz", **to_arrays(getattr(model, name))._asdict())
    plain = DCLS.fold(model)  # convolutions of torch alone, with the same outputs
    found = accuracy(plain, read(folder / NAMES[1]))
    print(f"test {found:.2%}, with whole delays and plain convolutions")
    return found


if __name__ == "__main__":
    main()
