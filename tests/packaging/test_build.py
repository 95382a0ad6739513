"""What the compiled library contains: GPU code, instruction sets, symbols."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from DCLS import _C

EXTENSION = Path(_C.__file__)
LIBRARY = EXTENSION.parent / "lib" / "libdcls.so"
# Each .cu file is one piece of code for each architecture.
CUDA_FILES = len(list((Path(__file__).parents[2] / "src" / "cuda").rglob("*.cu")))


def cuobjdump(*arguments: str) -> str:
    """Runs the one of the package nvidia-cuda-cuobjdump, or else that on the PATH."""
    try:
        files = importlib.metadata.files("nvidia-cuda-cuobjdump") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    programs = [str(f.locate()) for f in files if f.name == "cuobjdump"]
    program = programs[0] if programs else shutil.which("cuobjdump")
    if program is None:
        pytest.skip("there is no cuobjdump, of nvidia-cuda-cuobjdump or on the PATH")
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not _C.build_info()["cuda"], reason="this DCLS was built without CUDA")
def test_there_is_code_for_every_listed_architecture():
    listed = _C.build_info()["cuda_architectures"]
    assert isinstance(listed, list)
    assert listed
    cubins = re.findall(r"\.sm_(\d+)\.cubin", cuobjdump("--list-elf", str(LIBRARY)))
    ptx = re.findall(r"\.sm_(\d+)\.ptx", cuobjdump("--list-ptx", str(LIBRARY)))
    for found, kind in ((cubins, "virtual"), (ptx, "real")):
        expected = [name.split("-")[0] for name in listed if not name.endswith(f"-{kind}")]
        assert sorted(found) == sorted(expected * CUDA_FILES)
    kernels = cuobjdump("--dump-elf-symbols", str(LIBRARY))
    for name in (
        "construct_forward",
        "construct_backward",
        "conv_forward",
        "conv_kernel_partial",
        "im2col_forward",
        "im2col_backward_input",
        "layer_prepare",
        "layer_finish",
    ):
        assert name in kernels


@pytest.mark.skipif(not _C.build_info()["cuda"], reason="this DCLS was built without CUDA")
def test_every_supported_gpu_finds_code():
    """Machine code serves later GPUs of its major number, PTX every later GPU.

    Not asked for: 8.7, Jetson Orin, where machine code for desktop GPUs is not promised to run.
    """
    listed = _C.build_info()["cuda_architectures"]
    assert isinstance(listed, list)
    if len(listed) < 3:
        pytest.skip(f"a developer's build, for {', '.join(listed)} only")
    real = [int(a.split("-")[0]) for a in listed if not a.endswith("-virtual")]
    ptx = [int(a.split("-")[0]) for a in listed if not a.endswith("-real")]
    for gpu in (75, 80, 86, 88, 89, 90, 100, 103, 110, 120, 121):
        by_code = any(a // 10 == gpu // 10 and a <= gpu for a in real)
        assert by_code or any(a <= gpu for a in ptx), f"no code for compute capability {gpu}"


#: The first level, which every processor of its kind has.
LOWEST = "neon" if platform.machine() in ("aarch64", "arm64") else "baseline"


def test_simd_levels_agree():
    """The environment variable chooses; each level gives the same numbers to rounding."""
    script = (
        "import torch, DCLS; torch.manual_seed(0); a = torch.randn(9, 8, 7).double();"
        "k = DCLS.construct_kernel(a, a[None], a[None], dilated_kernel_size=11);"
        "print(DCLS._C.build_info()['simd'], *k.flatten()[::7].tolist())"
    )
    results = {}
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    for level in _C.build_info()["simd_compiled"]:
        needs = {"avx2": "avx2", "avx512": "avx512vl", "avx512bf16": "avx512_bf16"}
        flag = needs.get(level.removesuffix("_256"), "")
        if flag not in flags:
            continue
        output = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "DCLS_SIMD": level},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        assert output[0] == level
        results[level] = [float(value) for value in output[1:]]
    assert next(iter(results)) == LOWEST
    for values in results.values():
        assert values == pytest.approx(results[LOWEST], rel=1e-12)


def test_unknown_simd_level_is_an_error():
    done = subprocess.run(
        [sys.executable, "-c", "import DCLS; DCLS._C.build_info()"],
        env={**os.environ, "DCLS_SIMD": "mmx"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert re.search(rf"DCLS_SIMD must be one of {LOWEST}\b", done.stderr)
    assert "got 'mmx'" in done.stderr


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
def test_links_neither_torch_nor_the_cuda_driver():
    """One build serves every torch, and machines without a GPU."""
    for file in (EXTENSION, LIBRARY):
        dynamic = subprocess.run(
            ["readelf", "-d", str(file)], check=True, capture_output=True, text=True
        ).stdout
        needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
        assert needed
        for name in needed:
            assert not re.match(r"libtorch|libc10|libcuda|libcudart|libnv|libpython", name), name


def test_every_cuda_kernel_is_run_on_the_host():
    """Each kernel has a ctest that fails unless all its instantiations were run."""
    root = Path(__file__).parents[2]
    sources = [file.read_text() for file in (root / "src" / "cuda").glob("**/*.cu*")]
    declared = r"__global__\s+void\s*(?:__launch_bounds__\([^)]*\))?\s*(\w+)\("
    kernels = {name for source in sources for name in re.findall(declared, source)}
    assert {"construct_forward", "construct_backward"} <= kernels
    assert sum(source.count("__global__") for source in sources) == len(kernels)
    folders = (root / "tests" / "cpp", root / "tests" / "cuda_emulator" / "tests")
    tests = "".join(file.read_text() for folder in folders for file in folder.glob("*.cpp"))
    for kernel in kernels:
        assert f"launch_count(cuda::{kernel}<" in tests, f"no test counts the launches of {kernel}"
