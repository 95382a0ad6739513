"""C++ projects that use the library: the example, and what the page on C++ has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools import run

import DCLS
from DCLS import _C
from DCLS.cmake import config_dir, pkg_config_dir, prefix

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "cmake_project"
HAS_CUDA = bool(_C.build_info()["cuda"])


def configure(build: Path, *arguments: str | Path, source: Path = EXAMPLE) -> str:
    return run("cmake", "-S", source, "-B", build, "-G", "Ninja", *arguments)


def build_and_run(build: Path) -> str:
    """Builds the example and runs it; its numbers are checked by itself."""
    run("cmake", "--build", build, "--parallel", "2")
    output = run(build / "dcls_example")
    assert f"DCLS {DCLS.__version__}, headers of {DCLS.__version__}" in output
    assert re.search(r"CPU: largest error \S+, ok", output)
    return output


@pytest.mark.packaging
def test_cmake_project_on_the_installed_package(tmp_path):
    output = configure(tmp_path, f"-DCMAKE_PREFIX_PATH={prefix()}")
    assert f"DCLS with CUDA: {'ON' if HAS_CUDA else 'OFF'}" in output
    output = build_and_run(tmp_path)
    assert ("built without CUDA" in output) == (not HAS_CUDA)


@pytest.mark.packaging
@pytest.mark.parametrize("variable", ["DCLS_DIR", "DCLS_ROOT"])
def test_cmake_finds_the_package_by_either_variable(tmp_path, variable):
    directory = config_dir() if variable == "DCLS_DIR" else prefix()
    configure(tmp_path, f"-D{variable}={directory}")


def find(tmp_path: Path, request: str) -> tuple[int, str]:
    """Configures a project of one find_package call."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\n"
        f"project(consumer LANGUAGES NONE)\nfind_package(DCLS {request})\n"
        'message(STATUS "found=${DCLS_FOUND} version=${DCLS_VERSION}")\n'
    )
    # The interpreter's own cmake, as in run(); the exit code matters here.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["cmake", "-G", "Ninja", f"-DDCLS_DIR={config_dir()}", "-B", "build"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.mark.packaging
@pytest.mark.parametrize("request_", ["1", "1.0", "1.0.0", ""])
def test_cmake_accepts_versions_of_the_same_major(tmp_path, request_):
    code, output = find(tmp_path, f"{request_} REQUIRED")
    assert code == 0, output
    assert f"found=1 version={DCLS.__version__}" in output


@pytest.mark.packaging
@pytest.mark.parametrize("request_", ["0.1", "2", "1.99"])
def test_cmake_refuses_other_versions(tmp_path, request_):
    code, output = find(tmp_path, f"{request_} REQUIRED")
    assert code != 0
    assert f'compatible with requested version "{request_}"' in output


@pytest.mark.packaging
def test_cmake_component_cuda_insists_on_cuda(tmp_path):
    code, output = find(tmp_path, "1 REQUIRED COMPONENTS CUDA")
    if HAS_CUDA:
        assert code == 0, output
    else:
        assert code != 0
        assert "holds a DCLS that was built without CUDA" in output


@pytest.mark.packaging
def test_cmake_project_from_source(tmp_path):
    """add_subdirectory, FetchContent and an installed, moved prefix: one compilation for all."""
    build = tmp_path / "build"
    options = ["-DDCLS_CUDA=OFF", "-DDCLS_INSTALL=ON"]
    if compiler := shutil.which(os.environ.get("CXX", "c++")):
        # How fast the library is does not matter here, and -O3 takes two minutes more.
        plain = tmp_path / "c++"
        plain.write_text(
            "#!/bin/sh\n"
            'for a do shift; [ "$a" = -O3 ] || set -- "$@" "$a"; done\n'
            f'exec "{compiler}" "$@"\n'
        )
        plain.chmod(0o755)
        options.append(f"-DCMAKE_CXX_COMPILER={plain}")
    output = configure(build, "-DDCLS_FROM=add_subdirectory", *options)
    assert "DCLS with CUDA: OFF" in output
    build_and_run(build)

    configure(build, "-DDCLS_FROM=FetchContent", *options)
    compiled = run("cmake", "--build", build, "-v", "--parallel", "2")
    assert "construct_kernels.cpp" not in compiled  # the example's option changed, nothing else
    build_and_run(build)

    run("cmake", "--install", build, "--prefix", tmp_path / "prefix")
    (tmp_path / "prefix").rename(tmp_path / "moved")
    shutil.rmtree(build)
    for file in (tmp_path / "moved").rglob("*.cmake"):
        assert str(tmp_path) not in file.read_text(), f"{file} is not relocatable"
    output = configure(build, f"-DCMAKE_PREFIX_PATH={tmp_path / 'moved'}")
    assert "DCLS with CUDA: OFF" in output
    build_and_run(build)


@pytest.mark.packaging
def test_cmake_defaults_as_project_and_as_part_of_one(tmp_path):
    """On its own DCLS is installed, tested and optimised; in another project it keeps quiet."""
    configure(tmp_path / "own", "-DDCLS_CUDA=OFF", source=ROOT)
    cache = (tmp_path / "own" / "CMakeCache.txt").read_text()
    for line in ("DCLS_INSTALL:BOOL=ON", "DCLS_TESTS:BOOL=ON", "CMAKE_BUILD_TYPE:STRING=Release"):
        assert line in cache
    assert "DCLS_PYTHON:BOOL=OFF" in cache

    configure(tmp_path / "part", "-DDCLS_CUDA=OFF", "-DDCLS_FROM=add_subdirectory")
    cache = (tmp_path / "part" / "CMakeCache.txt").read_text()
    for line in ("DCLS_INSTALL:BOOL=OFF", "DCLS_TESTS:BOOL=OFF", "DCLS_PYTHON:BOOL=OFF"):
        assert line in cache
    assert "CMAKE_BUILD_TYPE:STRING=Release" not in cache


@pytest.mark.packaging
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_cmake_project_from_source_takes_cuda_options(tmp_path):
    output = configure(
        tmp_path,
        "-DDCLS_FROM=FetchContent",
        "-DDCLS_CUDA=ON",
        "-DDCLS_CUDA_ARCHITECTURES=90-real",
    )
    assert "DCLS with CUDA: ON" in output
    assert re.search(r"building with CUDA \S+ for 90-real", output)


@pytest.mark.packaging
@pytest.mark.parametrize("heading", ["Build and run it", "### pkg-config"])
def test_a_project_written_from_the_cpp_page_alone(tmp_path, heading):
    if heading == "### pkg-config" and shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config")
    page = (ROOT / "docs" / "cpp.md").read_text()
    for name, language in (("CMakeLists.txt", "cmake"), ("main.cpp", "cpp")):
        block = re.search(rf"`{re.escape(name)}`:\n\n```{language}\n(.*?)```", page, re.DOTALL)
        assert block is not None
        (tmp_path / name).write_text(block[1])
    commands = re.search(rf"^{heading}.*?```sh\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert commands is not None
    output = run("sh", "-ec", commands[1], cwd=tmp_path)
    promised = re.search(r"^It prints\n\n```text\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert promised is not None
    assert output.endswith(promised[1])


def test_the_pkg_config_file_can_be_moved():
    """By reading it: each path starts at the file."""
    text = (pkg_config_dir() / "dcls.pc").read_text()
    paths = dict(re.findall(r"^(\w+)=\$\{pcfiledir\}/(.*)$", text, re.MULTILINE))
    assert (pkg_config_dir() / paths["libdir"] / "libdcls.so").is_file()
    assert (pkg_config_dir() / paths["includedir"] / "dcls" / "tensor.hpp").is_file()
    assert f"Version: {DCLS.__version__}\n" in text
    assert str(prefix()) not in text


def cmakes() -> list[str]:
    """Returns the cmake programs at hand: on the PATH, and in the folders of DCLS_TEST_CMAKES."""
    folders = [str(Path(sys.executable).parent)]
    for variable in ("PATH", "DCLS_TEST_CMAKES"):
        folders += os.environ.get(variable, "").split(os.pathsep)
    programs = dict.fromkeys(os.path.realpath(Path(f) / "cmake") for f in folders if f)
    return [program for program in programs if os.access(program, os.X_OK)]


@pytest.mark.packaging
@pytest.mark.parametrize("cmake", cmakes())
def test_the_example_with_each_cmake_at_hand(tmp_path, cmake):
    version = re.search(r"version (\d+)\.(\d+)", run(cmake, "--version"))
    assert version is not None
    if (int(version[1]), int(version[2])) < (3, 18):
        pytest.skip("older than what the example asks for")
    run(cmake, "-S", EXAMPLE, "-B", tmp_path / "found", "-G", "Ninja", f"-DDCLS_DIR={config_dir()}")
    run(cmake, "--build", tmp_path / "found")
    assert "ok" in run(tmp_path / "found" / "dcls_example")
    options = ("-DDCLS_FROM=add_subdirectory", "-DDCLS_CUDA=OFF", "-DDCLS_INSTALL=ON")
    output = run(cmake, "-S", EXAMPLE, "-B", tmp_path / "part", "-G", "Ninja", *options)
    assert "DCLS with CUDA: OFF" in output


def test_all_projects_ask_for_one_cmake():
    files = (
        ROOT / "CMakeLists.txt",
        EXAMPLE / "CMakeLists.txt",
        EXAMPLE.parent / "downstream_package" / "CMakeLists.txt",
        ROOT / "docs" / "cpp.md",
    )
    minimum = r"cmake_minimum_required\(VERSION ([\d.]+?)(?:\.\.\.[\d.]+)?\)"
    assert {v for f in files for v in re.findall(minimum, f.read_text())} == {"3.18"}
    assert "with CMake 3.18 or newer" in files[-1].read_text()


@pytest.mark.packaging
def test_a_project_on_a_cuda_build_needs_no_nvcc(tmp_path):
    """The config of a CUDA build, with an nvcc in all places that notes each call and fails."""
    package = tmp_path / "DCLS"
    shutil.copytree(prefix(), package, ignore=shutil.ignore_patterns("*.py", "_C*"))
    config = package / "share" / "cmake" / "DCLS" / "DCLSConfig.cmake"
    says = re.sub(r"set\(DCLS_HAS_CUDA \w+\)", "set(DCLS_HAS_CUDA ON)", config.read_text())
    assert "set(DCLS_HAS_CUDA ON)" in says
    config.write_text(says)
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\ntouch {tmp_path / 'called'}\nexit 1\n")
    nvcc.chmod(0o755)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(consumer LANGUAGES CXX)\n"
        "find_package(DCLS 1 REQUIRED COMPONENTS CUDA)\nadd_executable(consumer main.cpp)\n"
        "target_link_libraries(consumer PRIVATE DCLS::dcls)\n"
    )
    (tmp_path / "main.cpp").write_text(
        "#include <dcls/runtime.hpp>\n#include <dcls/tensor.hpp>\n"
        "int main() {\n"
        "  dcls::cuda_status();\n"
        "  return dcls::default_sigma_min(dcls::Version::kGauss) > 0 ? 0 : 1;\n}\n"
    )
    path = f"{nvcc.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (
        ("-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-DDCLS_DIR={config.parent}"),
        ("--build", tmp_path / "build"),
    ):
        run("cmake", *command, PATH=path, CUDACXX=str(nvcc))
    run(tmp_path / "build" / "consumer", PATH=path)
    assert not (tmp_path / "called").exists()
