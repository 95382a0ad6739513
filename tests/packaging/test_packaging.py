"""What is installed, and that C++ projects and Python packages can build on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from tools import run

import DCLS
from DCLS.cmake import config_dir, prefix

ROOT = Path(__file__).resolve().parents[2]
DOWNSTREAM = ROOT / "examples" / "downstream_package"


def load_check_wheel() -> ModuleType:
    path = ROOT / ".github" / "scripts" / "check_wheel.py"
    spec = importlib.util.spec_from_file_location("check_wheel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_wheel = load_check_wheel()


# What is installed

needs_binutils = pytest.mark.skipif(
    shutil.which("nm") is None or shutil.which("readelf") is None, reason="there are no binutils"
)


@needs_binutils
def test_installed_files_symbols_and_library_paths():
    package = prefix()
    if "DCLS" not in {p.parent.name for p in package.glob("py.typed")}:
        # An editable install: the Python files are elsewhere, the compiled ones here.
        pytest.skip("an editable install has no complete package directory")
    check_wheel.check_package(package)


@needs_binutils
def test_the_check_notices_foreign_symbols_and_libraries(tmp_path):
    """Against copies with faults: a check that always passes is none."""
    package = tmp_path / "DCLS"
    shutil.copytree(prefix(), package, symlinks=True)
    (package / "py.typed").touch()
    check_wheel.check_package(package)

    bundled = package / "lib" / "libgomp.so.1"
    bundled.touch()
    with pytest.raises(check_wheel.WheelError, match="do not belong here"):
        check_wheel.check_package(package)
    bundled.unlink()

    header = package / "include" / "dcls" / "version.hpp"
    header.rename(header.with_suffix(".bak"))
    with pytest.raises(check_wheel.WheelError, match=r"version\.hpp is missing"):
        check_wheel.check_package(package)
    header.with_suffix(".bak").rename(header)

    library = package / "lib" / "libdcls.so"
    shutil.copy(next(package.glob("_C.*.so")), library)
    with pytest.raises(check_wheel.WheelError, match="exports"):
        check_wheel.check_package(package)


@needs_binutils
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_check_notices_what_is_too_new(tmp_path):
    """Against a library that takes symbols of an old, a new, and an unknown version."""
    versions = "GLIBC_2.28 { global: old; }; GLIBC_2.34 { global: pthread_once; }; ODD_1 {odd;};"
    (tmp_path / "versions.map").write_text(versions)
    (tmp_path / "libc.c").write_text("void old() {} void pthread_once() {} void odd() {}")
    (tmp_path / "user.c").write_text("void user() { old(); pthread_once(); odd(); }")
    cc = ["cc", "-w", "-shared", "-fPIC", "-nostdlib"]
    run(*cc, "libc.c", "-Wl,--version-script=versions.map", "-o", "libc.so.6", cwd=tmp_path)
    run(*cc, "user.c", "-Wl,--no-as-needed", "./libc.so.6", "-o", "user.so", cwd=tmp_path)
    library = tmp_path / "user.so"
    assert [symbol[:2] for symbol in check_wheel.needed_symbols(library)] == [
        ("odd", "ODD_1"),
        ("old", "GLIBC_2.28"),
        ("pthread_once", "GLIBC_2.34"),
    ]
    with pytest.raises(check_wheel.WheelError) as raised:
        check_wheel.check_symbols(library, 28)
    text = str(raised.value)
    assert "pthread_once@GLIBC_2.34" in text
    assert "libpthread, libdl and librt became parts of libc" in text
    assert "odd@ODD_1" in text
    assert "old@" not in text
    with pytest.raises(check_wheel.WheelError) as raised:
        check_wheel.check_symbols(library, 34)
    assert "pthread_once" not in str(raised.value)
    with pytest.raises(check_wheel.WheelError, match=r"old@GLIBC_2\.28"):
        check_wheel.check_symbols(library, 27)


@pytest.mark.parametrize(
    ("tag", "problem"), [("manylinux_2_36", "asks for glibc 2.36"), ("linux", "auditwheel")]
)
def test_the_check_notices_the_wrong_tag(tmp_path, tag, problem):
    wheel = tmp_path / f"dcls-1.0.0-cp311-cp311-{tag}_x86_64.whl"
    zipfile.ZipFile(wheel, "w").close()
    with pytest.raises(check_wheel.WheelError, match=problem):
        check_wheel.check_wheel(wheel, cuda=False)


def test_torch_has_a_lower_bound_only():
    metadata = importlib.metadata.distribution("DCLS").read_text("METADATA")
    assert metadata is not None
    check_wheel.check_requirements(metadata)
    for pinned in ("torch==2.13.0", "torch>=2.6,<3", "torch"):
        with pytest.raises(check_wheel.WheelError, match="torch must have a lower bound"):
            check_wheel.check_requirements(f"Metadata-Version: 2.1\nRequires-Dist: {pinned}\n")


def test_the_installed_files_make_a_small_wheel(tmp_path):
    archive = tmp_path / "DCLS.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in importlib.metadata.files("DCLS") or []:
            if file.suffix != ".pyc":
                wheel.write(file.locate(), str(file))
        assert any(name.endswith("libdcls.so") for name in wheel.namelist())
    assert archive.stat().st_size < check_wheel.MAX_BYTES


def test_the_command_prints_the_directory_of_the_config():
    assert run(sys.executable, "-m", "DCLS", "cmake-dir") == f"{config_dir()}\n"
    assert (config_dir() / "DCLSConfig.cmake").is_file()


def test_scikit_build_core_is_pointed_to_the_package():
    (entry,) = [e for e in importlib.metadata.entry_points(group="cmake.root") if e.name == "DCLS"]
    assert entry.load() is DCLS


# Python packages


@pytest.mark.packaging
def test_downstream_package(tmp_path):
    """Its extension links DCLS::dcls and is found without a path, its module extends Dcls1d."""
    run(
        *(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
        ),
        *("--target", tmp_path, DOWNSTREAM),
    )
    output = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull),
        *("--rootdir", DOWNSTREAM, DOWNSTREAM / "tests"),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    assert re.search(r"\b5 passed", output), output


# Documentation


def test_install_page_quotes_the_options_of_the_build():
    listing = (ROOT / "CMakeLists.txt").read_text()
    block = re.search(r"# -+ options -+\n((?:#.*\n)+)", listing)
    assert block is not None
    page = (ROOT / "docs" / "install.md").read_text()
    assert block[1] in page, "docs/install.md must quote the options block of CMakeLists.txt"
    described = set(re.findall(r"^# (DCLS_\w+)", block[1], re.MULTILINE))
    defined = re.findall(r"^option\((DCLS_\w+)|^set\((DCLS_\w+) .*CACHE ", listing, re.MULTILINE)
    assert described == {name for pair in defined for name in pair if name}
