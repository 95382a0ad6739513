"""The demo's training: repeated, clamped, on two processes; and the vowels from a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from DCLS.demo import train
from DCLS.demo.settings import Settings
from DCLS.demo.tasks import KINDS, Recipe, Signals
from DCLS.demo.tasks.delays import read
from DCLS.demo.tasks.signals import generate

OPTIONS = {"task": "signals", "epochs": 1, "batch_size": 333, "seeds": 1, "dtype": "float64"}


def test_a_training_repeats_bit_by_bit_and_depends_on_its_seed() -> None:
    def final(seed: int) -> torch.Tensor:
        network = Signals().network("learned", seed).double()
        train.train(network, generate(40, 0), Recipe(epochs=2, batch_size=16, lr=0.01), seed)
        return nn.utils.parameters_to_vector(network.parameters()).detach()

    assert torch.equal(final(5), final(5))
    assert not torch.equal(final(5), final(6))


def test_delays_are_clamped_after_each_step() -> None:
    network = Signals().network("learned", 0).double()
    layer = network.get_submodule("delays")
    extremes = []
    layer.register_forward_pre_hook(
        lambda one, _: extremes.append(float(one.P.detach().abs().max()))
    )
    train.train(network, generate(40, 0), Recipe(epochs=1, batch_size=10, lr=3.0), 0)
    assert extremes[1:] == [Signals.max_delay / 2] * 3, "with this rate they hit the border"


def test_two_processes_train_the_same_networks_as_one_and_speak_once(tmp_path: Path) -> None:
    worker = """
import os, sys, torch
from DCLS.cli import main
from DCLS.demo import train

def compare(*arguments, compare=train.compare, **options):
    outcomes = compare(*arguments, **options)
    states = [one.network.state_dict() for one in outcomes]
    torch.save(states, "result." + os.environ["RANK"])
    return outcomes

train.compare = compare
sys.exit(main(["demo", "--device=cpu", *sys.argv[1:]]))
"""
    (tmp_path / "worker.py").write_text(worker)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node=2", "worker.py", *flags],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for once in ("2 process(es)", "seconds a training", "picture: dcls-demo.png"):
        assert done.stdout.count(once) == 1
    alone = train.compare(Signals(), KINDS, Settings(**OPTIONS))
    for rank in range(2):
        states = torch.load(tmp_path / f"result.{rank}", weights_only=True)
        for state, one in zip(states, alone, strict=True):
            torch.testing.assert_close(state, one.network.state_dict(), rtol=1e-8, atol=1e-10)


def test_vowels_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "few.ts"
    path.write_text("@classLabel true 1 2\n@data\n1,2,3:-1,0.5,4:1\n7,8:9,10:9\n")
    sounds, speakers = read(path)
    assert [sound.tolist() for sound in sounds] == [
        [[1, -1], [2, 0.5], [3, 4]],
        [[7, 9], [8, 10]],
    ]
    assert speakers.tolist() == [0, 8]
