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
CASES_EACH = 4


def cases() -> Iterator[dict[str, Any]]:
    """Yields the configurations: random ones of every class and version."""
    choose = random.Random(20240229)
    for name, ndim in NDIM.items():
        for version in VERSIONS:
            if name == "Dcls3_1d" and version == "v0":
                continue  # 0.1.1 has none
            for number in range(CASES_EACH):
                yield case(choose, name, ndim, version, on_grid=number == 0)


def case(
    choose: random.Random, name: str, ndim: int, version: str, on_grid: bool
) -> dict[str, Any]:
    """Draws a configuration. Kernels are odd and cubic, where 0.1.1 centres them right."""
    groups = choose.choice([1, 1, 2, 4])
    size = choose.choice([3, 5, 7, 9] if ndim < 3 else [3, 5])
    stride: Any = choose.choice([1, 1, 2, [choose.randint(1, 3) for _ in range(ndim)]])
    padding: Any = choose.choice(
        [0, size // 2, [choose.randint(0, size // 2) for _ in range(ndim)]]
    )
    settings = {
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
    if name == "Dcls3_1d":
        settings["dense_kernel_size"] = [choose.randint(1, 3), choose.randint(1, 3)]
    if name == "Dcls2dK1d":
        settings["flat_dim"] = choose.randint(0, 1)
    if name == "Dcls2d":
        settings["use_implicit_gemm"] = False
    lengths = [size + choose.randint(0, 4 if ndim < 3 else 2) for _ in range(ndim)]
    batch = choose.randint(1, 2) if ndim < 3 else 1
    return {
        "class": name,
        "arguments": settings,
        "input": [batch, settings["in_channels"], *lengths],
        "seed": choose.randrange(2**32),
        "on_grid": on_grid,
    }


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
        index["cases"].append({**entry, "results": record(results)})
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
    record.save(options.output, index, pickles)
    size = options.output.stat().st_size
    print(f"{options.output}: {len(index['cases'])} cases, {size / 1e6:.2f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
