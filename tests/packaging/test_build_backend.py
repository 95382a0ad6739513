"""The build backend: pure wheels where nothing can be compiled, and PyPI's compiler for CUDA."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "build_backend" / "dcls_build.py"

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="takes a source tree")


@pytest.fixture
def backend() -> ModuleType:
    pytest.importorskip("scikit_build_core")
    spec = importlib.util.spec_from_file_location("dcls_build", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_compiler_is_looked_for(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend.find_compiler() is None
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert backend.find_compiler() == str(compiler)
    monkeypatch.setenv("CXX", "/no/such/compiler -O2")
    assert backend.find_compiler() is None
    monkeypatch.setenv("CXX", f"{compiler} -O2")
    assert backend.find_compiler() == str(compiler)


def test_without_one_the_wheel_is_pure_and_that_is_said(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "find_compiler", lambda: None)
    assert backend._adapted(None)["wheel.cmake"] == "false"
    assert "no C++ compiler was found" in capsys.readouterr().err
    assert backend._adapted({"wheel.cmake": "true"}) == {"wheel.cmake": "true"}
    monkeypatch.setattr(backend, "find_compiler", lambda: "/usr/bin/c++")
    assert backend._adapted({"a": "b"}) == {"a": "b"}
    assert capsys.readouterr().err == ""


def test_a_developers_build_is_left_out(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It lies among the sources, and may be of another interpreter or version."""
    tree = tmp_path / "tree"
    package = tree / "python" / "DCLS"
    shutil.copytree(ROOT / "build_backend", tree / "build_backend")
    for name in ("LICENSE", "README.md", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    for name in ("_C.cpython-39-x86_64-linux-gnu.so", "lib/libdcls.so", "include/dcls/a.hpp"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    for name in ("__init__.py", "_version.py"):
        shutil.copy(ROOT / "python" / "DCLS" / name, package)
    monkeypatch.chdir(tree)
    wheel = backend.build_wheel(str(tmp_path), {"wheel.cmake": "false"})
    names = zipfile.ZipFile(tmp_path / wheel).namelist()
    assert sorted(n for n in names if n.startswith("DCLS/")) == [
        "DCLS/__init__.py",
        "DCLS/_version.py",
    ]
    backend.build_sdist(str(tmp_path))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    assert sorted(n for n in held if n.startswith("python/")) == [
        "python/DCLS/__init__.py",
        "python/DCLS/_version.py",
    ]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_compiler_for_cuda_is_asked_for(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    requires = getattr(backend, f"get_requires_for_build_{kind}")
    monkeypatch.delenv("DCLS_NVCC", raising=False)
    usual = requires()
    monkeypatch.setenv("DCLS_NVCC", "pypi")
    more = requires()
    assert more[: len(usual)] == usual
    names = {name.partition("==")[0] for name in more[len(usual) :]}
    assert names == {
        "nvidia-cuda-nvcc",
        "nvidia-cuda-crt",
        "nvidia-cuda-runtime",
        "nvidia-cuda-cccl",
        "nvidia-nvvm",
    }
    monkeypatch.setenv("DCLS_NVCC", "conda")
    with pytest.raises(ValueError, match="DCLS_NVCC must be pypi or empty, got 'conda'"):
        requires()


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_compiler_for_cuda_builds(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """What CMake is told, and that the toolkit goes with the build."""
    packages = fake_packages(tmp_path)
    monkeypatch.setattr(backend, "_packages", lambda: packages)
    monkeypatch.setattr(backend, "find_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setenv("DCLS_NVCC", "pypi")
    monkeypatch.setenv("CUDACXX", "/usr/local/cuda/bin/nvcc")
    seen: dict[str, str] = {}

    def build(folder: str, settings: dict[str, str], metadata: str | None) -> str:
        seen.update(settings, CUDACXX=os.environ["CUDACXX"])
        assert os.access(os.environ["CUDACXX"], os.X_OK)
        return "a.whl"

    monkeypatch.setattr(backend._build, f"build_{kind}", build)
    make = getattr(backend, f"build_{kind}")
    assert make(str(tmp_path), {"cmake.define.DCLS_CUDA_ARCHITECTURES": "90-real"}) == "a.whl"
    root = Path(seen["cmake.define.CUDAToolkit_ROOT"])
    assert seen["CUDACXX"] == str(root / "bin" / "nvcc")
    assert seen["cmake.define.DCLS_CUDA"] == "ON"
    assert seen["cmake.define.DCLS_CUDA_ARCHITECTURES"] == "90-real"
    assert not root.exists()


def test_the_compiler_for_cuda_needs_what_is_missing(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCLS_NVCC", "pypi")
    monkeypatch.setattr(backend, "find_spec", lambda _name: None)
    monkeypatch.setattr(backend, "find_compiler", lambda: "/usr/bin/c++")
    with pytest.raises(RuntimeError, match=r"pip install nvidia-cuda-nvcc==13\.0\.\* "):
        backend.build_editable("")
    monkeypatch.delenv("SKBUILD_WHEEL_CMAKE", raising=False)
    monkeypatch.setattr(backend, "find_compiler", lambda: None)
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler"):
        backend.build_wheel("")


def fake_packages(tmp_path: Path) -> Path:
    """A folder as PyPI's packages make it, in which no program may be run yet."""
    packages = tmp_path / "nvidia" / "cu13"
    files = ("bin/nvcc", "nvvm/bin/cicc", "lib/libcudart.so.13", "include/cuda_runtime.h")
    for name in files:
        file = packages / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return packages


def test_the_packages_stay_as_they_are(backend: ModuleType, tmp_path: Path) -> None:
    packages = fake_packages(tmp_path)
    before = sorted((path, path.stat().st_mode) for path in packages.rglob("*"))
    nvcc = backend.toolkit(packages, tmp_path / "cuda")
    toolkit = tmp_path / "cuda"
    assert nvcc == toolkit / "bin" / "nvcc"
    assert os.access(nvcc, os.X_OK)
    assert (toolkit / "lib64" / "libcudart.so").read_text() == "lib/libcudart.so.13"
    assert (toolkit / "include" / "cuda_runtime.h").is_file()
    assert sorted((path, path.stat().st_mode) for path in packages.rglob("*")) == before


@pytest.mark.packaging
def test_a_pure_wheel_works(tmp_path: Path) -> None:
    """With every C++ compiler hidden; beside nothing but torch."""
    pytest.importorskip("scikit_build_core")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    environment = {**os.environ, "CXX": "/no/such/compiler", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)],
        check=True,
        env=environment,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".so", ".dylib", ".pyd"))]
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    script = (
        "import torch, DCLS\n"
        "layer = DCLS.Dcls2d(4, 4, 3, dilated_kernel_size=7, padding=3)\n"
        "layer(torch.ones(1, 4, 9, 9)).sum().backward()\n"
        "print(DCLS.__file__, DCLS.__version__)\n"
        "from DCLS import info\n"
        "print(info.render(info.collect()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(site)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{site}/DCLS/__init__.py ")
    assert "torch expressions compute on all devices: this copy of DCLS has no" in done.stdout
