"""Writes the golden data of tests/test_golden.py from DCLS 0.1.1.

    pip install --target FOLDER --no-deps dcls==0.1.1
    python tests/golden/make_golden.py FOLDER

DCLS 0.1.1 must not be imported beside this project's package, which has the same name: the folder
is put first on the path, and the script stops if another DCLS comes from elsewhere.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cases import DATA, PARAMETERS, Recorder, arguments, run

VERSIONS = ("v0", "v1", "max", "gauss")
NDIM = {"Dcls1d": 1, "Dcls2d": 2, "Dcls3d": 3, "Dcls3_1d": 3, "Dcls2dK1d": 2}
CASES_EACH = 18
MISCENTRED_EACH = 3


def cases() -> Iterator[dict[str, Any]]:
    """Yields the configurations that both get right: random ones of every class and version."""
    choose = random.Random(20240229)
    for name in NDIM:
        for version in VERSIONS:
            if name == "Dcls3_1d" and version == "v0":
                continue  # 0.1.1 has none
            for number in range(CASES_EACH):
                yield case(choose, name, version, number % 4 == 0, kernel_size(choose, name))


def miscentred() -> Iterator[dict[str, Any]]:
    """Yields configurations whose kernels 0.1.1 mis-centres: their axes differ."""
    choose = random.Random(19991231)
    for name, versions in (("Dcls2d", VERSIONS[1:]), ("Dcls3d", VERSIONS)):
        for version in versions:
            for _ in range(MISCENTRED_EACH):
                # All centres differ. Axes of more than a point: on one the gradient of a
                # normalised element is but rounding.
                size = choose.sample([3, 5, 8] if NDIM[name] == 2 else [2, 4, 7], NDIM[name])
                yield case(choose, name, version, False, size)


def kernel_size(choose: random.Random, name: str) -> int:
    """Draws a size for all axes: where they differ, 0.1.1 may mis-centre the kernel."""
    largest = {"Dcls1d": 12, "Dcls2d": 8, "Dcls3d": 5, "Dcls3_1d": 7, "Dcls2dK1d": 9}[name]
    # Even sizes in one case of three, and one point now and then.
    if choose.random() < 1 / 16:
        return 1
    return choose.choice(range(2 if choose.random() < 1 / 3 else 3, largest + 1, 2))


def case(
    choose: random.Random, name: str, version: str, on_grid: bool, size: int | list[int]
) -> dict[str, Any]:
    """Draws a configuration for a kernel of ``size``."""
    ndim = NDIM[name]
    groups = choose.choice([1, 1, 2, 4])
    settings: dict[str, Any] = {}
    if name == "Dcls3_1d":
        settings["dense_kernel_size"] = [choose.randint(1, 3), choose.randint(1, 3)]
    if name == "Dcls2dK1d":
        settings["flat_dim"] = choose.randint(0, 1)
    if name == "Dcls2d":
        settings["use_implicit_gemm"] = False
    sizes = size if isinstance(size, list) else [size] * ndim
    if name == "Dcls3_1d":
        sizes = [*settings["dense_kernel_size"], size]
    stride: Any = choose.choice([1, 1, 2, [choose.randint(1, 3) for _ in range(ndim)]])
    padding: Any = choose.choice(
        [0, min(sizes) // 2, [choose.randint(0, points // 2) for points in sizes]]
    )
    settings |= {
        "in_channels": groups * choose.choice([1, 2] if groups < 4 else [1]),
        "out_channels": groups * choose.choice([1, 2] if groups < 4 else [1]),
        "kernel_count": choose.randint(1, 5),
        "stride": stride,
        "padding": padding,
        "dilated_kernel_size": size,
        "groups": groups,
        "bias": choose.random() < 0.6,
        "padding_mode": choose.choice(["zeros", "reflect", "replicate", "circular"]),
        "version": version,
    }
    lengths = [points + choose.randint(0, 4 if ndim < 3 else 2) for points in sizes]
    batch = choose.randint(1, 2) if ndim < 3 else 1
    return {
        "class": name,
        "arguments": settings,
        "input": [batch, settings["in_channels"], *lengths],
        "seed": choose.randrange(2**32),
        "on_grid": on_grid,
    }


def differences(modules: Any, record: Recorder) -> dict[str, Any]:
    """Writes down what 0.1.1 does where it is wrong."""
    found: dict[str, Any] = {"even_limit": [], "miscentred": []}
    for entry in miscentred():
        module = getattr(modules, entry["class"])(**arguments(entry)).double()
        found["miscentred"].append({**entry, "results": record(run(module, entry))})
    for version in VERSIONS:
        module = modules.Dcls1d(1, 1, 1, dilated_kernel_size=4, version=version).double()
        with torch.no_grad():
            module.weight.fill_(1)
            module.P.fill_(9)
        module.clamp_parameters()
        kernel = module.DCK(module.weight, module.P, module.SIG)
        values = record({"P": module.P, "kernel": kernel})
        found["even_limit"].append({"version": version, "values": values})
    module = modules.Dcls1d(1, 1, 1, dilated_kernel_size=5)
    module(torch.ones(1, 1, 9))
    module.version = "max"
    found["version_of_the_builder"] = module.DCK.version
    module.to("meta")
    try:
        module(torch.ones(1, 1, 9, device="meta"))
    except RuntimeError as error:
        found["after_to"] = str(error)
    half = modules.Dcls1d(1, 1, 1, dilated_kernel_size=5, version="v0").half()
    found["half_v0"] = str(half.DCK(half.weight, half.P, half.SIG).dtype)
    return found


def described(modules: Any) -> Iterator[dict[str, Any]]:
    """Yields text, parameters and their initial values of a few modules."""
    settings = [
        {"dilated_kernel_size": 7, "groups": 4, "bias": False, "stride": 2},
        {"dilated_kernel_size": 9, "padding": 2, "padding_mode": "circular"},
    ]
    for name in NDIM:
        for number, version in enumerate(VERSIONS):
            chosen = dict(settings[number % 2], version=version, kernel_count=6)
            chosen |= {"in_channels": 4, "out_channels": 8}
            if name == "Dcls3_1d":
                chosen["dense_kernel_size"] = [2, 3]
            module = getattr(modules, name)(**arguments({"arguments": chosen}))
            torch.manual_seed(number)
            module.reset_parameters()
            yield {"class": name, "arguments": chosen, "seed": number, "module": module}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where DCLS 0.1.1 is installed")
    parser.add_argument("--output", type=Path, default=DATA)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    sys.path.insert(0, str(options.folder.resolve()))
    modules = importlib.import_module("DCLS.construct.modules")
    if not Path(str(modules.__file__)).is_relative_to(options.folder.resolve()):
        parser.error(f"DCLS comes from {modules.__file__}, not from {options.folder}")

    record = Recorder()
    index: dict[str, Any] = {"torch": torch.__version__, "cases": [], "initial": []}
    pickles: dict[str, bytes] = {}
    for entry in cases():
        module = getattr(modules, entry["class"])(**arguments(entry)).double()
        results = run(module, entry)
        names = list(module.state_dict())
        index["cases"].append({**entry, "state_dict": names, "results": record(results)})
        if entry["arguments"]["version"] == "gauss":
            pickles[entry["class"]] = pickle.dumps(module.float(), protocol=4)
    # Other draws than these mean that torch's generator changed, not that initial values did.
    torch.manual_seed(0)
    index["generator"] = record({"uniform": torch.rand(40), "normal": torch.randn(40)})
    for entry in described(modules):
        module = entry.pop("module")
        values = {
            name: getattr(module, name) for name in PARAMETERS if getattr(module, name) is not None
        }
        entry["state_dict"] = {key: list(value.shape) for key, value in module.state_dict().items()}
        entry["extra_repr"] = module.extra_repr()
        index["initial"].append({**entry, "values": record(values)})
    index["differences"] = differences(modules, record)
    record.save(options.output, index, pickles)
    size = options.output.stat().st_size
    print(f"{options.output}: {len(index['cases'])} cases, {size / 1e6:.2f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
