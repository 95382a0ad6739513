"""The arithmetic of the model of the CUDA kernels. tests/cuda_emulator tests its interpreter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarking import load

from DCLS import _cuda_model

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "cuda_model.py").is_file(), reason="takes a source tree"
)


@pytest.fixture
def model(monkeypatch):
    return load("cuda_model", monkeypatch)


@pytest.fixture
def times(monkeypatch):
    return load("cuda_times", monkeypatch)


#: Made up, with one instruction a clock and multiprocessor for ease of counting.
def device(times, **more):
    rates = {"multiprocessors": 10, "clock": 1e9, "memory": 1e12, "l2": 4e12, "fma_lanes": 128}
    rates |= {"tensor": 1e14, "tensor_tf32": 5e13, "shared": 100 << 10, "threads": 2048}
    return times.Device("G", **{**rates, "blocks": 32, "issue": 4, **more})


def launch(**more):
    """A copy of 1 MiB: 1024 blocks of 256 threads, two of them run; an LDG and an STG a warp.

    A warp takes 4 sectors and a line of each, and 4 more instructions.
    """
    counts = {"LDG.E": [16, 512, 16, 16, 0, 64], "STG.E": [16, 512, 16, 16, 0, 64]}
    counts |= {"IMAD.WIDE": [32, 1024, 0, 0, 0, 0], "EXIT": [16, 512, 0, 0, 0, 0]}
    counts["S2R"] = [16, 512, 0, 0, 0, 0]
    facts = {"layer": "a", "dtype": "float32", "layout": "NCHW", "pass": "forward"}
    facts |= {"kernel": "dcls::cuda::copy<float>", "grid": 1024, "threads": 256, "blocks": 2}
    facts |= {"registers": 32, "stack": 0, "spill_instructions": 0, "shared": 1024}
    facts |= {"input_bytes": 1 << 20, "output_bytes": 1 << 20, "products": 0, "counts": counts}
    return {**facts, **more}


def test_the_package_assumes_what_was_modelled(model, monkeypatch, tmp_path):
    rows = json.loads(model.RESULT.read_text())["results"]
    parts = list(model.direct_parts(rows).values())
    assert [*(part.direct for part in _cuda_model.DEPTHWISE), _cuda_model.DENSE] == parts
    text = model.ASSUMED.read_text()
    copy = tmp_path / "model.py"
    copy.write_text(text.replace(f", {parts[1]}, ", ", 0.99, "))
    assert copy.read_text() != text
    monkeypatch.setattr(model, "ASSUMED", copy)
    model.write_assumed(rows)
    assert copy.read_text() == text


def test_times_of_a_copy(times):
    found = times.times(launch(), device(times))
    # The multiprocessor with the most blocks has 103 of them, of 8 warps.
    assert found["issue"] == pytest.approx(103 * 8 * 6 / 4 / 1e9)
    assert found["shared"] == pytest.approx(103 * 8 * 2 / 1e9)
    assert found["FMA"] == pytest.approx(103 * 8 * 2 * 32 / 128 / 1e9)
    assert found["integer"] == pytest.approx(103 * 8 * 32 / 64 / 1e9)
    assert found["tensor"] == 0
    assert found["L2"] == pytest.approx(2 * (1 << 20) / 4e12)
    assert found["DRAM"] == pytest.approx(2 * (1 << 20) / 1e12)
    assert times.binding(launch(), device(times)) == (found["DRAM"], "DRAM")
    # A kernel that reads less than there is moves less.
    less = launch(input_bytes=1 << 30)
    assert times.times(less, device(times))["DRAM"] == found["DRAM"]


def test_times_of_a_product_of_matrices(times):
    """128 x 128 x 128 in one block of 4 warps, with mma of 16 x 8 x 16, then with FFMA."""
    mma = 128**3 // (16 * 8 * 16)
    counts = {"HMMA.16816.F32.BF16": [mma, 32 * mma, 0, 0, 0, 0]}
    counts["LDSM.16.M88.4"] = [256, 8192, 256, 1280, 1024, 0]
    work = {"grid": 1, "threads": 128, "blocks": 1, "products": 128**3}
    found = times.times(launch(counts=counts, **work), device(times))
    # A tenth of the chip computes.
    assert found["tensor"] == pytest.approx(10 * 128**3 / 1e14)
    assert found["shared"] == pytest.approx(1280 / 1e9)
    assert times.wavefronts_an_access(counts, "LDS") == 1.25
    assert times.by_class(counts)["tensor"] == mma
    tf32 = {"HMMA.1688.F32.TF32": [2 * mma, 64 * mma, 0, 0, 0, 0]}
    found = times.times(launch(counts=tf32, **work), device(times))
    assert found["tensor"] == pytest.approx(10 * 128**3 / 5e13)
    fma = {"FFMA": [128**3 // 32, 128**3, 0, 0, 0, 0]}
    found = times.times(launch(counts=fma, **work), device(times))
    assert found["FMA"] == pytest.approx(128**3 / 128 / 1e9)
    assert times.binding(launch(counts=fma, **work), device(times, fma_lanes=64))[1] == "FMA"


@pytest.mark.parametrize(
    ("more", "blocks"),
    [
        ({}, 8),  # threads: 2048 / 256
        ({"registers": 80}, 3),  # 65536 / (80 * 256)
        ({"registers": 81}, 2),  # given out in steps of 8 a thread
        ({"shared": 30 << 10}, 3),
        ({"shared": 101 << 10}, 0),
        ({"threads": 33, "registers": 8}, 32),  # of the multiprocessor
        ({"threads": 160, "registers": 95}, 4),
    ],
)
def test_blocks_of_a_multiprocessor(times, more, blocks):
    assert times.blocks_a_multiprocessor(launch(**more), device(times)) == blocks


def test_floor(times):
    gpu = device(times)
    assert times.floor(launch(), gpu) == pytest.approx(2 * (1 << 20) / 1e12)
    many = launch(products=1 << 30)
    assert times.floor(many, gpu) == pytest.approx((1 << 30) / (10 * 1e9 * 128))
    assert times.floor(many, gpu, tensor=True) == times.floor(launch(), gpu)


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("FFMA", "FMA"),
        ("HMMA.16816.F32", "tensor"),
        ("LDS.128", "LDS"),
        ("LDSM.16.M88.4", "LDS"),
        ("LDGSTS.E.BYPASS.128", "copy"),
        ("LDG.E.64", "LDG"),
        ("STG.E", "STG"),
        ("STS.U8", "STS"),
        ("LDL.LU", "local"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"),
        ("BRA", "branch"),
        ("IMAD.WIDE.U32", "integer"),
        ("UIADD3.X", "integer"),
        ("LDC.64", "integer"),
        ("MUFU.RCP", "other"),
    ],
)
def test_classes(times, instruction, kind):
    assert times.class_of(instruction) == kind


def test_a_conflict_is_seen(times):
    counts = {"LDS": [8, 256, 8, 20, 8, 0], "LDS.128": [2, 64, 2, 8, 8, 0]}
    counts["STS"] = [1, 32, 1, 7, 1, 0]
    assert times.wavefronts_an_access(counts, "LDS") == 28 / 16
    assert times.wavefronts_an_access(counts, "STS") == 7
    assert times.wavefronts_an_access(counts, "copy") is None


def test_double_precision_is_seen(model):
    for instruction in ("DADD", "DFMA.RN", "DSETP.GT.AND", "F2F.F32.F64", "I2F.F64.S32"):
        assert model.is_double(instruction), instruction
    for instruction in ("DEPBAR.LE", "FADD", "F2F.BF16.F32", "F2I.S64.TRUNC"):
        assert not model.is_double(instruction), instruction


def test_budgets(model):
    row = model.summary(launch())
    assert row["instructions"] == 8 * 6
    assert row["sector_use"] == 1
    budget = {**row, "instructions": 1000}
    assert model.excesses([row], [budget]) == []
    assert model.excesses([row], []) == ["a, float32, NCHW, copy, forward: there is no budget"]
    for change, part in (
        ({"registers": 41}, "registers is 41, the budget 32"),
        ({"spill_instructions": 3}, "spill_instructions is 3"),
        ({"double": 1}, "double is 1"),
        ({"load_wavefronts": 1.5}, "load_wavefronts is 1.5"),
        ({"instructions": 1151}, "instructions is 1151"),
        ({"us": {**row["us"], "A100": row["us"]["A100"] * 1.1 + 2}}, "on A100, the budget"),
    ):
        (line,) = model.excesses([{**row, **change}], [budget])
        assert part in line
    # What a kernel of another version of nvcc may differ by.
    assert model.excesses([{**row, "registers": 40, "instructions": 1149}], [budget]) == []


def test_without_nvcc_it_says_so(model, monkeypatch, capsys):
    monkeypatch.setenv("CUDACXX", "no-such-compiler")
    monkeypatch.setattr(sys, "argv", ["cuda_model.py", "--check"])
    assert model.main() == model.SKIPPED
    assert (
        "SKIPPED, the CUDA kernels were not modelled: nvcc was not found" in capsys.readouterr().out
    )


def test_budgets_are_written_whole(model, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cuda_model.py", "--write", "--only", "56x56"])
    with pytest.raises(SystemExit):
        model.main()


def test_the_committed_budgets_are_of_every_stage(model):
    rows = json.loads(model.RESULT.read_text())["results"]
    text = {f"{row['layer']}, {row['dtype']}, {row['layout']}" for row in rows}
    for stage in ("96@56x56", "192@28x28", "384@14x14", "768@7x7"):
        for kernel in ("17x17 v1", "23x23 gauss"):
            for dtype in ("float32", "tf32", "bfloat16"):
                for layout in ("NCHW", "channels_last"):
                    # As tf32_pays has it.
                    narrow = stage == "768@7x7" or (kernel[:2], layout) == ("17", "channels_last")
                    taken = dtype != "tf32" or not narrow
                    assert (f"{stage} {kernel}, {dtype}, {layout}" in text) == taken
