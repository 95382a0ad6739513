"""What a release consists of, besides the wheels."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def project_version() -> str:
    found = re.search(r'"(.*)"$', (ROOT / "python" / "DCLS" / "_version.py").read_text().strip())
    assert found is not None
    return found[1]


def test_citation_has_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [project_version()]


def test_the_oldest_torch_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    oldest = re.findall(r'^dependencies = \["torch>=(.*)"\]$', project, re.MULTILINE)
    for page in ("README.md", "docs/install.md"):
        named = re.findall(r"PyTorch[ |]+([\d.]+) or newer", (ROOT / page).read_text())
        assert named == oldest, page


#: What torch 2.5.0, too, has of these. Look there before a name is added.
PRIVATE_NAMES_OF_TORCH_2_5 = {
    "torch._functorch.eager_transforms.enable_inplace_requires_grad",
    "torch._functorch.utils.enable_single_level_autograd_function",
    "torch.autograd.function._SingleLevelFunction",
    "torch.nn.modules.conv._ConvNd",
    "torch.nn.modules.conv._ConvTransposeNd",
}


def test_private_names_of_torch_are_as_old_as_the_oldest() -> None:
    """One that is newer makes the import fail there, which no newer torch shows."""
    imported = set()
    for file in (ROOT / "python" / "DCLS").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    private = {name for name in imported if re.search(r"\._", name)}
    assert private == PRIVATE_NAMES_OF_TORCH_2_5


def test_changelog_has_the_version_or_what_is_unreleased() -> None:
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings
    assert headings[0] in ("Unreleased", project_version())


@pytest.mark.packaging
def test_source_distribution_has_all_sources(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: there is no list of the sources")
    program = (
        "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "CMakeLists.txt",
            "build_backend",
            "cmake",
            "include",
            "src",
            "python",
            "tests",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    missing = {name for name in listed if name} - names
    assert not missing
    assert not {name for name in names if name.endswith((".so", ".o", ".pyc"))}


@pytest.mark.skipif(not (ROOT / ".pre-commit-config.yaml").is_file(), reason="takes a clone")
def test_linters_have_the_same_version_everywhere() -> None:
    """In the dependency groups and in what runs before a commit."""
    pins: dict[str, set[str]] = {}
    for file in ("pyproject.toml", ".pre-commit-config.yaml"):
        for tool, version in re.findall(r'"([\w-]+)==([\d.]+)"', (ROOT / file).read_text()):
            pins.setdefault(tool, set()).add(version)
    assert {"ruff", "clang-format"} <= pins.keys()
    assert all(len(versions) == 1 for versions in pins.values()), pins


README_PLUGIN = ROOT / "build_backend" / "dcls_readme.py"
has_the_plugin = pytest.mark.skipif(not README_PLUGIN.is_file(), reason="takes a source tree")


@has_the_plugin
def test_the_readme_survives_on_a_package_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a path of the repository leads nowhere."""
    monkeypatch.chdir(ROOT)
    make = runpy.run_path(str(README_PLUGIN))["dynamic_metadata"]
    readme = (ROOT / "README.md").read_text()
    relative = re.compile(r"\]\((?!https://)([^)#]+)")
    paths = set(relative.findall(readme))
    assert {"docs/install.md", "docs/images/elements.png", "LICENSE"} <= paths

    made = make("readme", {"source": ""})
    assert made["content-type"] == "text/markdown"
    assert "](" not in made["text"]
    assert not {path for path in paths if path not in made["text"]}
    assert re.findall(r"^```.*?^```$", made["text"], re.MULTILINE | re.DOTALL) == re.findall(
        r"^```.*?^```$", readme, re.MULTILINE | re.DOTALL
    )
    linked = make("readme", {"source": "https://a.b/c"})["text"]
    assert not relative.findall(linked)
    assert "](https://a.b/c/blob/HEAD/docs/recipes.md#where-elements-start)" in linked
    assert "](https://a.b/c/raw/HEAD/docs/images/elements.png)" in linked
    with pytest.raises(ValueError, match="got version"):
        make("version", {"source": ""})


@has_the_plugin
def test_the_readme_keeps_code_and_foreign_links() -> None:
    adapted = runpy.run_path(str(README_PLUGIN))["adapted"]
    text = "# T\n`a[0](x)` [b `c`](d.md) [e](#f) [g](https://h)\n```python\ni[1](j)\n```\n"
    plain = "`a[0](x)` b `c` (`d.md`) e [g](https://h)\n```python\ni[1](j)\n```\n"
    assert adapted(text, "").endswith(f"\n{plain}")
    linked = adapted(text, "https://s")
    assert "[b `c`](https://s/blob/HEAD/d.md) [e](https://s/blob/HEAD/README.md#f)" in linked
    assert "source distribution" not in linked


def run_install_cuda(folder: Path, machine: str, **environment: str) -> tuple[int, str, list[str]]:
    """Runs the script with stand-ins for what it calls; returns their command lines, too."""
    stand_in = '#!/bin/sh\necho "${0##*/} $*" >>"$LOG"\n'
    for name in ("dnf", "ln", "nvcc", "cuobjdump", "python3.12"):
        (folder / name).write_text(stand_in)
    (folder / "uname").write_text(f"#!/bin/sh\necho {machine}\n")
    for file in folder.iterdir():
        file.chmod(0o755)
    log = folder / "log"
    log.write_text("")
    done = subprocess.run(
        ["bash", str(INSTALL_CUDA)],
        env={"PATH": f"{folder}:/usr/bin:/bin", "LOG": str(log), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr, log.read_text().splitlines()


INSTALL_CUDA = ROOT / ".github" / "scripts" / "install_cuda.sh"
takes_bash = pytest.mark.skipif(
    sys.platform != "linux" or not INSTALL_CUDA.is_file(), reason="takes a clone, and bash"
)


@takes_bash
@pytest.mark.parametrize(
    ("machine", "platform", "wish", "version"),
    [("x86_64", "x86_64", None, "12.8"), ("aarch64", "sbsa", "13.1", "13.1")],
)
def test_the_toolkit_of_the_wheels(
    tmp_path: Path, machine: str, platform: str, wish: str | None, version: str
) -> None:
    wishes = {} if wish is None else {"DCLS_CUDA_TOOLKIT": wish}
    code, _, commands = run_install_cuda(tmp_path, machine, **wishes, DCLS_NVCC="")
    repository = f"https://developer.download.nvidia.com/compute/cuda/repos/rhel8/{platform}"
    packages = [
        f"cuda-{n}-{version.replace('.', '-')}" for n in ("nvcc", "cudart-devel", "cuobjdump")
    ]
    assert code == 0
    assert commands == [
        "dnf install -y dnf-plugins-core epel-release",
        "dnf install -y ccache",
        f"dnf config-manager --add-repo {repository}/cuda-rhel8.repo",
        f"dnf install -y --setopt=install_weak_deps=False {' '.join(packages)}",
        f"ln -sfn /usr/local/cuda-{version} /usr/local/cuda",
        "nvcc --version",
    ]


@takes_bash
def test_the_toolkit_of_the_wheels_from_pypi(tmp_path: Path) -> None:
    """No command names NVIDIA's repository: the build asks PyPI for the compiler."""
    code, _, commands = run_install_cuda(tmp_path, "x86_64", DCLS_NVCC="pypi")
    assert code == 0
    assert commands[2:] == [
        "python3.12 -m pip install --target /opt/cuobjdump nvidia-cuda-cuobjdump",
        "ln -s /opt/cuobjdump/nvidia/cu13/bin/cuobjdump /usr/local/bin/",
        "cuobjdump --version",
    ]


@takes_bash
@pytest.mark.parametrize(
    ("machine", "version", "problem"),
    [
        ("x86_64", "12", "must be a version like 12.8 or 13.0, got '12'"),
        ("x86_64", "11.8", "got '11.8'"),
        ("x86_64", "12.8; id", "got '12.8; id'"),
        ("ppc64le", "12.8", "no toolkit for ppc64le"),
    ],
)
def test_the_toolkit_of_the_wheels_says_what_is_wrong(
    tmp_path: Path, machine: str, version: str, problem: str
) -> None:
    code, error, commands = run_install_cuda(tmp_path, machine, DCLS_CUDA_TOOLKIT=version)
    assert code == 2
    assert problem in error
    assert commands == []


def test_the_wheel_job_takes_the_compiler_of_the_build() -> None:
    """It and the backend name the same release, and the container gets to know the wish."""
    jobs = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    (cuda,) = re.findall(r'cuda: "([\d.]+)", name: [\w-]+, nvcc: pypi', jobs)
    backend = (ROOT / "build_backend" / "dcls_build.py").read_text()
    assert f'f"nvidia-{{name}}=={cuda}.*"' in backend
    project = (ROOT / "pyproject.toml").read_text()
    assert 'environment-pass = ["DCLS_CUDA_TOOLKIT", "DCLS_NVCC"]' in project
