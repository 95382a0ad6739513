"""An import after ``sys.modules`` lost the package, as in notebooks and in tests elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import gc, importlib, sys
import torch
import DCLS
import DCLS.im2col

def make(package, kind, **options):
    torch.manual_seed(0)
    kind = package.im2col.Dcls2d if kind == "im2col" else package.Dcls2d
    return kind(2, 2, 3, dilated_kernel_size=5, dtype=torch.float64, **options)

def run(module):
    module.zero_grad()
    output = module(x)
    output.square().sum().backward()
    return [output, *(p.grad for p in module.parameters())]

x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
kinds = [("im2col", {}), ("plain", {"method": "direct"}), ("plain", {"method": "conv"})]
old = [make(DCLS, kind, **options) for kind, options in kinds]
want = [[t.clone() for t in run(module)] for module in old]
for round in range(2):
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]
    gc.collect()
    import DCLS
    import DCLS.im2col
    for (kind, options), before, results in zip(kinds, old, want):
        new = make(DCLS, kind, **options)
        for module in (new, before):
            for got, expected in zip(run(module), results, strict=True):
                assert torch.equal(got, expected)
        P = new.P.detach()
        tangent = torch.func.jvp(
            lambda P: torch.func.functional_call(new, {"P": P}, (x,)), (P,), (torch.ones_like(P),)
        )[1]
        assert tangent.abs().max() > 0
    from DCLS._ops import _library, layer
    assert _library.library is not None and callable(layer)
for module in (DCLS, DCLS._ops, DCLS.functional):
    importlib.reload(module)
run(make(DCLS, "plain", method="direct"))
print("same")
"""


@pytest.mark.parametrize("prefix", ["DCLS", "DCLS._ops"])
def test_a_second_import_works(prefix: str) -> None:
    script = f"PREFIX = {prefix!r}\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def test_another_copy_of_the_package_is_refused(tmp_path: object) -> None:
    script = f"""
import shutil, sys
from pathlib import Path
import DCLS
copy = Path({str(tmp_path)!r}) / "DCLS"
shutil.copytree(Path(DCLS.__file__).parent, copy, ignore=shutil.ignore_patterns("lib", "include"))
for name in [name for name in sys.modules if name.startswith("DCLS")]:
    del sys.modules[name]
sys.path.insert(0, str(copy.parent))
try:
    import DCLS
except ImportError as error:
    assert "DCLS has been imported in this process from another place" in str(error), error
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
