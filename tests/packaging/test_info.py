"""``dcls info``: what a bug report gets to see."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

import DCLS
from DCLS import _C, cli, info


def test_info_has_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["dcls"] == {
        "version": DCLS.__version__,
        "path": str(Path(DCLS.__file__).parent),
    }
    assert facts["python"] == f"{platform.python_implementation()} {platform.python_version()}"
    assert facts["platform"] == platform.platform()
    assert facts["torch"]["version"] == torch.__version__
    assert facts["native"] == _C.build_info()
    assert facts["cuda"] == _C.cuda_status()
    assert facts["threads"]["torch"] == torch.get_num_threads()
    assert facts["native"]["simd"] in facts["native"]["simd_compiled"]


def test_info_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    native = _C.build_info()
    for fact in (
        DCLS.__version__,
        platform.python_version(),
        torch.__version__,
        native["compiler"],
        f"{native['simd']} in use",
        f"{torch.get_num_threads()} of torch",
        "OMP_NUM_THREADS 7",
    ):
        assert str(fact) in text
    assert ("built without CUDA" in text) or native["cuda_toolkit"] in text
    names = [line.split("  ")[0] for line in text.splitlines()]
    assert names[:4] == ["DCLS", "Python", "platform", "torch"]
    assert "GPU" in names


def test_info_with_a_gpu_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = info.collect()
    facts["native"].update(cuda=True, cuda_toolkit="12.9", cuda_architectures=["80", "90"])
    facts["cuda"] = {
        "available": True,
        "driver": "570.1",
        "reason": "",
        "devices": ["NVIDIA A100, compute capability 8.0", "NVIDIA H200, compute capability 9.0"],
    }
    lines = re.sub(" {2,}", "  ", info.render(facts)).splitlines()
    assert "CUDA  built with toolkit 12.9 for 80, 90" in lines
    assert "driver  570.1" in lines
    assert "GPU  NVIDIA A100, compute capability 8.0" in lines
    assert "GPU  NVIDIA H200, compute capability 9.0" in lines
    facts["cuda"] = {"available": False, "driver": "", "reason": "no driver", "devices": []}
    facts["native"].update(cuda=False)
    lines = re.sub(" {2,}", "  ", info.render(facts)).splitlines()
    assert "CUDA  built without CUDA" in lines
    assert "driver  none found" in lines
    assert "GPU  none usable: no driver" in lines


def test_info_reports_torchs_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn("the driver is too old", stacklevel=1)
        return False

    facts = info.collect()
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    facts.update(info.devices())
    assert facts["torch"]["warnings"] == ["the driver is too old"]
    assert "torch warns" in info.render(facts)


def test_info_leaves_cuda_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here = info.devices()

    def asked(*_: object) -> None:
        raise AssertionError("it would initialise CUDA in this process")

    for module, name in ((torch.cuda, "is_available"), (torch.cuda, "device_count")):
        monkeypatch.setattr(module, name, asked)
    monkeypatch.setattr(_C, "cuda_status", asked)
    facts = info.collect()
    assert {key: facts[key] for key in here} == here
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(AssertionError, match="would initialise"):
        info.collect()


def test_info_tells_what_failed_in_the_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess("", 1, "", "no torch")
    info._devices_seen_by_a_child.cache_clear()  # no test before it counts
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="no torch"):
        info.collect()
