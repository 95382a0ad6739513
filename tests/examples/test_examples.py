"""The examples in ``examples/`` train, on small data that these tests write in the real formats."""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from packages import import_or_skip, without_their_warnings

import DCLS

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """Loads ``train.py`` of an example, as a run of the file does."""
    spec = importlib.util.spec_from_file_location(f"{name}_train", EXAMPLES / name / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/train.py")), ids=lambda p: p.parent.name)
def test_an_example_is_one_short_file_that_says_what_was_not_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 250
    assert f"python examples/{path.parent.name}/train.py" in text
    assert "arXiv" in text.partition('"""\n\n')[0]


# SHD


def write_shd(path: Path, sounds: int, seed: int) -> list[tuple[Any, Any, int]]:
    """Writes a file of SHD: two classes, whose channels spike one after the other, or back."""
    h5py = import_or_skip("h5py")
    draw = np.random.default_rng(seed)
    written = []
    for number in range(sounds):
        label = number % 2
        units = draw.integers(0, 700, 600)
        sweep = units / 700 if label == 0 else 1 - units / 700
        times = 0.15 * sweep + 0.01 * draw.random(600)
        order = np.argsort(times)
        written.append((times[order].astype(np.float16), units[order].astype(np.uint16), label))
    with h5py.File(path, "w") as file:
        for name, column, dtype in (("times", 0, np.float16), ("units", 1, np.uint16)):
            rows = file.create_dataset(
                f"spikes/{name}", (sounds,), dtype=h5py.vlen_dtype(np.dtype(dtype))
            )
            for number, sound in enumerate(written):
                rows[number] = sound[column]
        file["labels"] = np.array([label for *_, label in written], dtype=np.uint16)
        file["extra/speaker"] = np.zeros(sounds, dtype=np.uint16)
    return written


def test_shd_reads_the_format_of_the_data_set(tmp_path: Path) -> None:
    written = write_shd(tmp_path / "shd_train.h5", 5, seed=0)
    shd = example("shd")
    sounds = shd.Sounds(tmp_path / "shd_train.h5")
    assert len(sounds) == 5
    assert sounds.labels.tolist() == [0, 1, 0, 1, 0]
    for frames, (times, units, _) in zip(sounds.frames, written, strict=True):
        expected = np.zeros((int(float(times.max()) / 0.01) + 1, 140))
        for time, unit in zip(times, units, strict=True):
            expected[int(float(time) * 100), unit // 5] += 1
        assert np.array_equal(frames.numpy(), expected)
    ((x, y),) = sounds.batches(torch.tensor([3, 0]), 8, "cpu")
    longest = max(len(sounds.frames[3]), len(sounds.frames[0]))
    assert x.shape == (longest, 2, 140)
    assert x.dtype == torch.float32
    assert torch.equal(x[: len(sounds.frames[3]), 0], sounds.frames[3].float())
    assert y.tolist() == [1, 0]
    assert shd.count_spikes(np.array([]), np.array([])).shape == (1, 140)


def test_shd_trains_narrows_and_evaluates_whole_delays(tmp_path: Path, capsys: Any) -> None:
    write_shd(tmp_path / "shd_train.h5", 48, seed=1)
    write_shd(tmp_path / "shd_test.h5", 20, seed=2)
    shd = example("shd")
    saved = tmp_path / "net.pt"
    given = ["--data", tmp_path, "--epochs", 8, "--batch-size", 8, "--hidden", 24]
    found = shd.main([str(word) for word in [*given, "--device", "cpu", "--save", saved]])
    printed = capsys.readouterr().out
    assert found >= 0.9, printed
    assert "epoch 1  SIG 1.66" in printed  # half of the way in ratios, from 12 to 0.23
    assert "epoch 2  SIG 0.23" in printed
    torch.manual_seed(0)
    start = shd.Network(24)
    model = shd.Network(24)
    model.load_state_dict(torch.load(saved))
    for new, old in zip(model.connections, start.connections, strict=True):
        assert new.delays().min() >= 0
        assert new.delays().max() <= 24
        assert (new.delays() - old.delays()).abs().mean() > 0.2  # 48 steps of at most 0.1
        assert new.SIG.unique().tolist() == pytest.approx([0.23])
    test = shd.Sounds(tmp_path / "shd_test.h5")
    DCLS.round_(model)
    _, again = shd.evaluate(model, test, torch.arange(20), 20, "cpu")
    assert again == found


def test_shd_neurons_are_those_of_the_paper() -> None:
    """Written out for one neuron; and the surrogate is the derivative of an arctangent."""
    shd = example("shd")
    currents = torch.tensor([0.5, 0.6, 1.2, 0.9, 0.999], dtype=torch.float64)
    membrane, expected = 0.0, []
    for current in currents.tolist():
        membrane = membrane - membrane / 1.005 + current
        expected.append(float(membrane >= 1))
        membrane *= 1 - expected[-1]
    assert shd.fire(currents.view(-1, 1, 1)).flatten().tolist() == expected
    x = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
    (surrogate,) = torch.autograd.grad(shd.Spike.apply(x).sum(), x)
    smooth = torch.atan(torch.pi / 2 * 5 * x) / torch.pi
    (slope,) = torch.autograd.grad(smooth.sum(), x)
    torch.testing.assert_close(surrogate, slope)


def test_shd_says_what_is_missing(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    h5py = import_or_skip("h5py")
    shd = example("shd")
    with pytest.raises(SystemExit, match=r"there is no .*shd_train\.h5"):
        shd.main(["--data", str(tmp_path)])
    with h5py.File(tmp_path / "shd_train.h5", "w") as file:
        file["labels"] = np.zeros(2)
    with pytest.raises(SystemExit, match="is no file of SHD"):
        shd.main(["--data", str(tmp_path)])
    for words in (["--epochs", "3"], ["--hold-out", "1"]):
        with pytest.raises(SystemExit):
            shd.main(["--data", str(tmp_path), *words])
        assert f"{words[0]} must be" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SystemExit, match="pip install h5py"):
        shd.main(["--data", str(tmp_path)])


# Spoken vowels


def write_vowels(folder: Path, name: str, utterances: int, seed: int) -> torch.Tensor:
    """Writes a file as aeon has it; a speaker is one coefficient that is large. Returns the first.

    Lengths are 7 to 12 steps.
    """
    draw = torch.Generator().manual_seed(seed)
    lines = ["#A comment", "@problemName JapaneseVowels", "@classLabel true 1 2 3", "@data"]
    first = None
    for number in range(utterances):
        speaker = number % 9
        sound = torch.randn(12, 7 + number % 6, generator=draw)
        sound[speaker] += 4
        first = sound if first is None else first
        rows = [",".join(f"{x:.6f}" for x in row) for row in sound.tolist()]
        lines.append(":".join([*rows, str(speaker + 1)]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")
    assert first is not None
    return first


def write_both(folder: Path) -> torch.Tensor:
    """Writes the files for training and for test. Returns the first utterance."""
    write_vowels(folder, "JapaneseVowels_TEST.ts", 36, seed=1)
    return write_vowels(folder, "JapaneseVowels_TRAIN.ts", 90, seed=0)


def test_vowels_are_read_and_scored_step_by_step(tmp_path: Path) -> None:
    first = write_both(tmp_path)
    vowels = example("spoken_vowels")
    data = vowels.read(tmp_path / "JapaneseVowels_TRAIN.ts")
    assert data.sounds.shape == (12, 90, 12)
    assert data.lengths[:7].tolist() == [7, 8, 9, 10, 11, 12, 7]
    assert data.speakers[:10].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]
    torch.testing.assert_close(data.sounds[:7, 0], first.T, atol=1e-5, rtol=0)
    assert not data.sounds[7:, 0].any()
    model = vowels.Network(data, 16, 8).eval()
    # What stands beside a short utterance in its batch does not change its scores.
    alone = data.part(torch.tensor([0]))
    alone = alone._replace(sounds=alone.sounds[:7])
    torch.testing.assert_close(model(data)[:1], model(alone), atol=1e-5, rtol=1e-5)


def test_vowels_train_and_save_whole_delays(tmp_path: Path, capsys: Any) -> None:
    write_both(tmp_path)
    vowels = example("spoken_vowels")
    given = ["--data", tmp_path, "--epochs", 12, "--lr", 0.01, "--save", tmp_path]
    found = vowels.main([str(word) for word in given])
    printed = capsys.readouterr().out
    assert found >= 0.9, printed
    assert "SIG  0.23" in printed
    for name, connections in (("first", 12 * 32), ("second", 32 * 9)):
        delays = np.load(tmp_path / f"{name}.npz")["delay"]
        assert len(delays) == connections
        assert np.issubdtype(delays.dtype, np.integer)
        assert delays.min() >= 0
        assert delays.max() <= 8
        assert len(np.unique(delays)) > 4


def test_vowels_are_found_in_aeon_which_is_not_imported(tmp_path: Path, monkeypatch: Any) -> None:
    package = tmp_path / "aeon"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('numba is not there')\n")
    vowels = example("spoken_vowels")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "aeon", raising=False)
    with pytest.raises(SystemExit, match="pip install --no-deps aeon"):
        vowels.main([])
    folder = package / "datasets" / "data" / "JapaneseVowels"
    write_both(folder)
    assert vowels.find_data(None) == folder
    assert "aeon" not in sys.modules


def test_vowels_say_what_is_missing(tmp_path: Path, capsys: Any) -> None:
    vowels = example("spoken_vowels")
    with pytest.raises(SystemExit, match=r"has no JapaneseVowels_TRAIN\.ts"):
        vowels.main(["--data", str(tmp_path)])
    (tmp_path / "JapaneseVowels_TEST.ts").write_text("")
    for text in ("", "@data\n", "@data\n1,2:3,4:1\n"):
        (tmp_path / "JapaneseVowels_TRAIN.ts").write_text(text)
        with pytest.raises(SystemExit, match="has no utterances of 12 coefficients"):
            vowels.main(["--data", str(tmp_path)])
    for words in (["--epochs", "3"], ["--save", str(tmp_path / "nowhere")]):
        with pytest.raises(SystemExit):
            vowels.main(words)
        assert f"{words[0]} must be" in capsys.readouterr().err


# Vision


def write_images(folder: Path, classes: int, images: int) -> None:
    """Writes folders of images; each class has stripes of its own direction."""
    image = import_or_skip("PIL.Image")
    draw = np.random.default_rng(0)
    for label in range(classes):
        target = folder / f"class{label}"
        target.mkdir(parents=True)
        for number in range(images):
            pixels = 40 * draw.random((40, 40, 3)) + 20
            stripes = (slice(None, None, 4), slice(None))
            pixels[stripes if label == 0 else stripes[::-1]] += 180
            image.fromarray(pixels.astype(np.uint8)).save(target / f"{number}.png")


TINY = {"--model": "convnext_atto", "--image-size": "32", "--batch-size": "4", "--workers": "0",
        "--device": "cpu", "--size": "9", "--elements": "6"}  # fmt: skip


def vision_arguments(folder: Path, **more: object) -> list[str]:
    """Returns the command line of a small run."""
    named = {"--data": folder, **TINY}
    named |= {f"--{name.replace('_', '-')}": value for name, value in more.items()}
    return [str(word) for pair in named.items() for word in pair]


@without_their_warnings
@pytest.mark.parametrize("version", ["v0", "gauss"])
def test_vision_trains_converts_and_folds(tmp_path: Path, capsys: Any, version: str) -> None:
    import_or_skip("timm")
    write_images(tmp_path / "train", 2, 4)
    write_images(tmp_path / "val", 2, 2)
    vision = example("vision")
    vision.REPULSION_EPOCH = 1
    saved = tmp_path / "weights.pt"
    arguments = vision_arguments(tmp_path, epochs=2, version=version, save=saved, lr=1e-3)
    found = vision.main(arguments)
    printed = capsys.readouterr().out
    assert "epoch 2  loss" in printed
    assert f"top-1 of the average {found:.2%}" in printed  # folding changes nothing
    state = torch.load(saved)
    positions = [value for name, value in state["model"].items() if name.endswith(".P")]
    assert len(positions) == 12  # as many as depthwise layers of the model
    assert len({value.data_ptr() for value in positions}) == 4  # and one set for each stage
    assert all(value.abs().max() <= 4 for value in positions)
    assert all(value.isfinite().all() for value in state["average"].values())


@without_their_warnings
def test_vision_augments_at_every_magnitude(tmp_path: Path, monkeypatch: Any) -> None:
    import_or_skip("timm")
    write_images(tmp_path / "train", 2, 50)
    write_images(tmp_path / "val", 2, 1)
    vision = example("vision")
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    # More than 10 is drawn once in 44 times.
    monkeypatch.setattr(random, "gauss", lambda mean, deviation: mean + 3 * deviation)
    args = argparse.Namespace(data=tmp_path, image_size=32, batch_size=4, workers=0, device="cpu")
    images, *_ = vision.make_loaders(args)
    assert sum(len(y) for _ in range(2) for _, y in images) == 200


@without_their_warnings
def test_vision_rates_and_what_is_missing(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    import_or_skip("timm")
    vision = example("vision")
    assert [vision.rate(step, 3, 7) for step in (0, 2, 3, 5, 7)] == pytest.approx(
        [0.25, 0.75, 1, 0.5, 0]
    )
    with pytest.raises(SystemExit, match=r"there is no folder .*train"):
        vision.main(vision_arguments(tmp_path))
    write_images(tmp_path / "train", 2, 1)
    write_images(tmp_path / "val", 1, 1)
    with pytest.raises(SystemExit, match="the same classes"):
        vision.main(vision_arguments(tmp_path))
    for name, value in (("batch_size", 3), ("epochs", 0)):
        with pytest.raises(SystemExit):
            vision.main(vision_arguments(tmp_path, **{name: value}))
        assert f"--{name.replace('_', '-')} must be" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit, match="pip install timm torchvision"):
        example("vision")
