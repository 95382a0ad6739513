"""The command ``dcls``: arguments, errors, exit codes, and what a bug report gets to see."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import VERSIONS

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

from commands import error_line, no_training  # noqa: F401  # a fixture

import DCLS
from DCLS import _C, cli
from DCLS.demo import settings, train
from DCLS.demo.tasks import KINDS, TASKS, Data, Digits


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# The command


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"DCLS {DCLS.__version__}\n"


def test_python_m_dcls_is_the_command() -> None:
    done = python("-m", "DCLS", "demo", "--epochs", "0")
    assert done.returncode == 2
    expected = "argument --epochs: must be an integer at least 1, got 0"
    assert done.stderr == f"dcls demo: error: {expected}\n"


@pytest.mark.parametrize("arguments", [[], ["train"], ["info", "--xml"], ["info", "x"]])
def test_unknown_commands_and_options(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    line = error_line(capsys, *arguments)
    assert line.startswith("dcls")
    assert ": error: " in line
    assert not arguments or arguments[-1] in line


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--help"])
    assert stopped.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    options = text[text.index("options:") :]
    for option, default in {
        "--task NAME": "pixels, or digits",
        "--seeds N": "3",
        "--epochs N": f"{TASKS['pixels'].recipe.epochs} for pixels",
        "--version NAME": "gauss",
        "--device NAME": "auto",
        "--seed N": "0",
        "--output PATH": "dcls-demo.png",
        "--batch-size N": f"{TASKS['pixels'].recipe.batch_size} for pixels",
        "--lr X": f"{TASKS['pixels'].recipe.lr} for pixels",
        "--kernel-size N": "17",
        "--kernel-count N": "as many as",
        "--init-positions NAME": "spread",
        "--dtype NAME": "float32",
        "--threads N": "1",
        "--no-baseline": "train them, too",
        "--quiet": "show them",
    }.items():
        pattern = rf" {option} [^(]*\(default: {re.escape(default)}"
        assert re.search(pattern, options), option


@pytest.mark.parametrize("command", ["cmake-dir", "pkg-config-dir"])
def test_a_directory_that_is_not_there(
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(DCLS.cmake, "prefix", lambda: tmp_path)
    assert cli.main([command]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"dcls {command}: error: .* built with DCLS_INSTALL=OFF\n", err)


def test_dcls_alone_has_the_directories_for_cmake() -> None:
    done = python("-c", "import DCLS; print(DCLS.cmake.prefix())")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.rstrip("\n")) == Path(_C.__file__).resolve().parent


# Bad values


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--task", "vowels", f"one of {', '.join(TASKS)}, got 'vowels'"),
        ("--seeds", "0", "from 1 to 1000, got 0"),
        ("--epochs", "0", "at least 1, got 0"),
        ("--epochs", "-3", "at least 1, got -3"),
        ("--epochs", "1.5", "invalid int value: '1.5'"),
        ("--epochs", "many", "invalid int value: 'many'"),
        ("--epochs", "", "invalid int value: ''"),
        ("--version", "v2", f"one of {', '.join(VERSIONS)}, got 'v2'"),
        ("--version", "Gauss", "got 'Gauss'"),
        ("--init-positions", "kernel", "one of normal, spread, grid, got 'kernel'"),
        ("--seed", "-1", "from 0 to 4294967295, got -1"),
        ("--seed", "4294967296", "got 4294967296"),
        ("--batch-size", "0", "at least 1, got 0"),
        ("--batch-size", "1e2", "invalid int value: '1e2'"),
        ("--lr", "0", "positive number, got 0.0"),
        ("--lr", "-0.1", "positive number, got -0.1"),
        ("--lr", "nan", "finite, positive number, got nan"),
        ("--lr", "inf", "finite, positive number, got inf"),
        ("--lr", "fast", "invalid float value: 'fast'"),
        ("--kernel-size", "0", "from 3 to 23, got 0"),
        ("--kernel-size", "16", "an odd integer from 3 to 23, got 16"),
        ("--kernel-size", "25", "from 3 to 23, got 25"),
        ("--kernel-count", "0", "from 1 to 57, got 0"),
        ("--kernel-count", "58", "from 1 to 57, got 58"),
        ("--kernel-count", "9.0", "invalid int value: '9.0'"),
        ("--dtype", "float16", "one of float32, float64, got 'float16'"),
        ("--threads", "0", "from 1 to 1024, got 0"),
        ("--threads", "1025", "from 1 to 1024, got 1025"),
        ("--device", "gpu", "must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("--device", "cpu:1", "got 'cpu:1'"),
        ("--device", "cuda:", "got 'cuda:'"),
        ("--device", "cuda:-1", "got 'cuda:-1'"),
        ("--device", "cuda:x", "got 'cuda:x'"),
        ("--output", "picture.jpg", "must end in one of .png, .pdf, .svg, got 'picture.jpg'"),
        ("--output", "", "must end in one of"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], option: str, value: str, complaint: str
) -> None:
    line = error_line(capsys, "demo", f"{option}={value}")
    assert line.startswith(f"dcls demo: error: argument {option}: ")
    assert complaint in line


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["RANK", "LOCAL_WORLD_SIZE"])
def test_bad_environment_variables_of_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(settings, "cuda_problem", lambda: "")
    monkeypatch.setenv(name, "first")
    assert cli.main(["demo", "--device", "cuda"]) == 2
    expected = f"dcls: error: environment variable {name} must be an int, got 'first'\n"
    assert capsys.readouterr().err == expected


def test_a_bad_simd_level_is_one_line() -> None:
    for command in (["info"], ["info", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "DCLS", *command],
            capture_output=True, text=True, timeout=120, env={**os.environ, "DCLS_SIMD": "bad"},
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        pattern = r"dcls: error: environment variable DCLS_SIMD must be one of .*, got 'bad'\n"
        assert re.fullmatch(pattern, done.stderr)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("module", "package"),
    [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("tqdm", "tqdm")],
)
def test_missing_extras_are_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = error_line(capsys, "demo")
    expected = f'the demo needs {package}; install with: pip install "DCLS[demo]"'
    assert line == f"dcls demo: error: {expected}"


def test_command_works_without_the_extras() -> None:
    script = """
import sys
for name in ("sklearn", "matplotlib", "tqdm"):
    sys.modules[name] = None
from DCLS.cli import main
assert main(["info"]) == 0
main(["demo"])
"""
    done = python("-c", script)
    assert done.returncode == 2
    assert done.stdout.startswith("DCLS ")
    assert done.stderr == (
        "dcls demo: error: the demo needs scikit-learn, matplotlib, tqdm; "
        'install with: pip install "DCLS[demo]"\n'
    )


# Devices


def test_cuda_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = error_line(capsys, "demo", "--device", "cuda")
    assert line.startswith("dcls demo: error: argument --device: got 'cuda', but ")
    assert "CUDA" in line
    assert settings.choose_device("auto") == torch.device("cpu")


def test_cuda_that_dcls_cannot_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_C, "cuda_status", lambda: {"available": False, "reason": "too old"})
    line = error_line(capsys, "demo", "--device", "cuda:0")
    assert "got 'cuda:0', but DCLS cannot use CUDA: too old" in line
    assert settings.choose_device("auto") == torch.device("cpu")


def test_devices_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "cuda_problem", lambda: "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    choose = settings.choose_device
    assert choose("cpu") == torch.device("cpu")
    assert choose("auto") == choose("cuda") == torch.device("cuda", 0)
    assert choose("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(argparse.ArgumentTypeError, match="the last of 2 device"):
        choose("cuda:2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose("auto") == choose("cuda") == torch.device("cuda", 1)
    with pytest.raises(argparse.ArgumentTypeError, match="must be cuda under torchrun"):
        choose("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(argparse.ArgumentTypeError, match="3 processes share 2 GPU"):
        choose("cuda")
    assert choose("cpu") == torch.device("cpu")


def test_only_the_first_process_complains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--epochs", "0"])
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", "")


# A run


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves 40 digits to train on, 10 to validate with and 20 to test with."""
    load = Digits.load

    def few(task: Digits, seed: int) -> Data:
        data = load(task, seed)
        counts = (40, 10, 20)
        return Data(*(split.part(torch.arange(n)) for split, n in zip(data, counts, strict=True)))

    monkeypatch.setattr(Digits, "load", few)


REDUCED = ["demo", "--epochs=2", "--batch-size=16", "--kernel-size=5", "--device=cpu"]


@pytest.mark.usefixtures("few_digits")
def test_demo_tells_each_training_and_ends_with_table_and_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*REDUCED, "--version=v1", "--seeds=2", "--seed=7"]) == 0
    out, err = capsys.readouterr()
    assert err == "", "no progress bar where there is no terminal"
    lines = out.splitlines()
    assert "40 for training, 10 for validation, 20 for test; on cpu, 1 process(es)" in lines[0]
    names = [Digits(version="v1", kernel_size=5).label(kind) for kind in KINDS]
    told = r"seed {}   {}: \d+ parameters   loss \d\.\d{{4}}   validation .*%   .* s"
    expected = [(seed, name) for seed in (7, 8) for name in names]
    for (seed, name), line in zip(expected, lines[1:7], strict=True):
        assert re.fullmatch(told.format(seed, re.escape(name)), line)
    assert lines[-1] == "picture: dcls-demo.png"
    assert (tmp_path / "dcls-demo.png").read_bytes().startswith(b"\x89PNG")
    for name, line in zip(names, lines[1:4], strict=True):
        row = next(row for row in lines[7:] if row.startswith(name))
        assert row[len(name) :].split()[0] == line[line.index(name) + len(name) + 2 :].split()[0]


@pytest.mark.usefixtures("few_digits")
def test_quiet_demo_without_the_baseline(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "picture.svg"
    threads = torch.get_num_threads()
    try:
        options = ["--quiet", "--no-baseline", "--threads=3", "--seeds=1", "--dtype=float64"]
        assert cli.main([*REDUCED, *options, f"--output={path}"]) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    name = Digits(kernel_size=5).label("learned")
    head, rule, row, verdict, last = (line for line in capsys.readouterr().out.splitlines() if line)
    assert head.startswith("network")
    assert set(rule) == {"-", " "}
    assert row.startswith(name)
    assert verdict.startswith(f"Learning {Digits.learned}: ")
    assert last == f"picture: {path}"
    assert path.read_text().startswith("<?xml")


@pytest.mark.usefixtures("few_digits")
def test_a_diverged_demo_exits_with_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    assert cli.main([*REDUCED, "--lr=1e30", f"--output={path}", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"dcls demo: error: the training diverged: the loss of epoch 1 is (nan|inf); "
        r"try a lower --lr\n",
        err,
    )
    assert not path.exists()


@pytest.mark.usefixtures("no_training")
def test_a_task_without_its_package_or_its_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = error_line(capsys, "demo", "--task=signals", "--kernel-size=5")
    assert line == "dcls demo: error: argument --kernel-size: only --task digits has it"
    monkeypatch.setitem(sys.modules, "sktime", None)
    line = error_line(capsys, "demo", "--task=delays")
    expected = 'the demo needs sktime; install with: pip install "DCLS[demo]"'
    assert line == f"dcls demo: error: {expected}"


@pytest.mark.parametrize(("problem", "code"), [(KeyboardInterrupt, 130), (train.DivergedError, 1)])
def test_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    problem: type[BaseException],
    code: int,
) -> None:
    def run(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(train, "run", run)
    assert cli.main(["demo", "--output", str(tmp_path / "picture.png")]) == code
    assert capsys.readouterr().err.count("\n") == 1
