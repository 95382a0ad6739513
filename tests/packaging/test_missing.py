"""What a user is told on a machine without torch, without a driver, without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from DCLS import _C


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a Python that hides every GPU."""
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=600,  # of a busy machine
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
    )


def test_without_torch_the_import_says_how_to_install_it():
    done = run("import sys; sys.modules['torch'] = None; import DCLS")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ModuleNotFoundError: DCLS needs PyTorch, which is not installed.")
    assert "pip install torch" in message


def test_an_error_inside_torch_is_not_taken_for_a_missing_torch():
    done = run("import sys; sys.modules['torch._C'] = None; import DCLS")
    assert done.returncode == 1
    assert "which is not installed" not in done.stderr
    assert "torch._C" in done.stderr


def test_the_cpu_works_without_a_gpu():
    done = run(
        "import torch, DCLS\n"
        "m = DCLS.Dcls2d(2, 3, kernel_count=2, dilated_kernel_size=5)\n"
        "y = m(torch.ones(1, 2, 8, 8))\n"
        "y.sum().backward()\n"
        "assert m.P.grad.shape == (2, 3, 2, 2)\n"
        "status = DCLS._C.cuda_status()\n"
        "assert not status['available'] and status['devices'] == []\n"
        "print(status['reason'])"
    )
    assert done.returncode == 0, done.stderr
    reason = done.stdout.strip()
    if _C.build_info()["cuda"]:
        # The last is CUDA's own name for what an old driver answers.
        assert (
            "no NVIDIA driver" in reason
            or "no CUDA-capable device" in reason
            or "cudaErrorInsufficientDriver" in reason
        ), reason
    else:
        assert "built without CUDA" in reason


CUDA_CALL = """
from DCLS import _C
buffer = bytearray(1024)
import ctypes
address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
problem = _C.ConstructProblem(0, 0, [3], [0], 1, 1, 0.27, address, address, 0)
try:
    _C.construct(problem, address, _C.Execution(1, 0, 0, 1))
except RuntimeError as error:
    print(type(error).__name__, error)
"""


def test_a_cuda_call_without_a_gpu_says_what_is_missing():
    """Torch gives no CUDA tensor here, so the native library is asked directly."""
    done = run(CUDA_CALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout, "the call on CUDA was not refused"
    if _C.build_info()["cuda"]:
        assert done.stdout.startswith("CudaError ")
        assert "cudaError" in done.stdout
        assert "device" in done.stdout or "driver" in done.stdout
    else:
        assert "built without CUDA" in done.stdout


# What libcudart asks a driver for before it compares versions; this one is of CUDA 11.4.
OLD_DRIVER = """
int cuDriverGetVersion(int* version) { *version = 11040; return 0; }
int cuInit(unsigned int flags) { return 0; }
"""


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a libcuda.so.1 that is too old."""
    if not _C.build_info()["cuda"]:
        pytest.skip("this DCLS was built without CUDA")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    directory = tmp_path_factory.mktemp("driver")
    source = directory / "driver.c"
    source.write_text(OLD_DRIVER)
    library = directory / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return directory


def test_an_old_driver_is_named_and_the_cpu_works(old_driver: Path) -> None:
    done = run(
        # A torch with CUDA says itself what it thinks of the driver.
        "import warnings; warnings.filterwarnings('ignore', 'CUDA initialization')\n"
        "import torch, DCLS\n"
        "m = DCLS.Dcls2d(2, 3, kernel_count=2, dilated_kernel_size=5)\n"
        "m(torch.ones(1, 2, 8, 8)).sum().backward()\n"
        "assert m.P.grad.shape == (2, 3, 2, 2)\n"
        "status = DCLS._C.cuda_status()\n"
        "assert not status['available'] and status['devices'] == []\n"
        "print(status['driver'], status['reason'])",
        LD_LIBRARY_PATH=str(old_driver),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("11.4 cudaErrorInsufficientDriver: ")
    assert "driver version is insufficient" in done.stdout


def test_a_cuda_call_on_an_old_driver_says_so(old_driver: Path) -> None:
    done = run(CUDA_CALL, LD_LIBRARY_PATH=str(old_driver))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CudaError ")
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text()
    (documented,) = re.findall(r"`(cudaErrorInsufficientDriver)`", page)
    assert documented in done.stdout


def test_torch_itself_refuses_a_module_on_a_gpu_that_is_not_there():
    done = run("import DCLS; DCLS.Dcls1d(1, 1, kernel_count=1, dilated_kernel_size=3).cuda()")
    assert done.returncode == 1
    assert any(word in done.stderr for word in ("NVIDIA", "CUDA")), done.stderr


@pytest.mark.parametrize("module", ["cmake-dir", "pkg-config-dir", "info"])
def test_the_commands_need_neither_gpu_nor_extras(module: str):
    hide = "import sys; sys.modules.update(sklearn=None, matplotlib=None, tqdm=None)\n"
    done = run(f"{hide}from DCLS.cli import main; sys.exit(main(['{module}']))")
    assert done.returncode == 0, done.stderr
    assert done.stdout
