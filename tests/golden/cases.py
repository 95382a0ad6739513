"""What the generator of the golden data and the test that reads them have in common.

Inputs are not stored but drawn again from the raw 64-bit words of PCG64, which NumPy promises to
keep (its distributions it may change). Outputs and gradients are stored.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).with_name("dcls-0.1.1.npz")

PARAMETERS = ("weight", "P", "SIG", "bias")


class Uniform:
    """Uniform float64 numbers that are the same with every version of NumPy."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def __call__(self, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
        words = np.asarray(self._bits.random_raw(math.prod(shape)), dtype=np.uint64)
        unit = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.from_numpy((low + (high - low) * unit).reshape(shape))


def fill(module: torch.nn.Module, case: dict[str, Any], uniform: Uniform) -> None:
    """Gives ``module`` the parameters of a case.

    Positions reach a step beyond the grid. Every fourth case has them on the grid points, where
    the tap functions have their kinks, with ``SIG`` 0.
    """
    with torch.no_grad():
        for name, value in values(module, case, uniform).items():
            getattr(module, name).copy_(value)


def values(
    module: torch.nn.Module, case: dict[str, Any], uniform: Uniform
) -> dict[str, torch.Tensor]:
    """Returns the parameters that :func:`fill` gives."""
    reach = max(module.dilated_kernel_size) // 2 + 1
    drawn = {}
    for name in PARAMETERS:
        parameter = getattr(module, name)
        if parameter is None:
            continue
        bound = reach if name == "P" else 1.0
        value = uniform(tuple(parameter.shape), -bound, bound)
        if case["on_grid"] and name == "P":
            value = value.round()
        if case["on_grid"] and name == "SIG":
            value = torch.zeros_like(value)
        drawn[name] = value
    return drawn


def run(module: torch.nn.Module, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the results of :func:`evaluate` for the parameters of a case."""
    uniform = Uniform(case["seed"])
    fill(module, case, uniform)
    return evaluate(module, case, uniform)


def evaluate(
    module: torch.nn.Module, case: dict[str, Any], uniform: Uniform
) -> dict[str, torch.Tensor]:
    """Returns output and gradients of ``(output * cotangent).sum()``, in the module's dtype.

    ``uniform`` must have drawn the parameters of the case, and no more.
    """
    dtype = module.weight.dtype
    x = uniform(tuple(case["input"]), -1, 1).to(dtype).requires_grad_()
    output = module(x)
    (output * uniform(tuple(output.shape), -1, 1).to(dtype)).sum().backward()
    results = {"output": output.detach(), "grad_input": x.grad}
    for name in PARAMETERS:
        parameter = getattr(module, name)
        if parameter is not None and parameter.grad is not None:
            results[f"grad_{name}"] = parameter.grad
    return results


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of a case's constructor (JSON has no tuples)."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in case["arguments"].items()
    }


class Golden:
    """The stored data: JSON and one flat array of float64."""

    def __init__(self, path: Path = DATA) -> None:
        with np.load(path, allow_pickle=False) as data:
            self.index: dict[str, Any] = json.loads(bytes(data["index"]).decode())
            self._values: np.ndarray = data["values"]
            self.modules = {
                name.removeprefix("pickle_"): bytes(data[name])
                for name in data.files
                if name.startswith("pickle_")
            }

    def tensors(self, entry: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Returns the tensors of an entry that :class:`Recorder` wrote."""
        return {
            name: torch.from_numpy(self._values[start : start + math.prod(shape)].reshape(shape))
            for name, (start, shape) in entry.items()
        }


class Recorder:
    """Collects tensors in one flat array."""

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._size = 0

    def __call__(self, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Stores ``tensors`` and returns the entry that finds them again."""
        entry = {}
        for name, tensor in tensors.items():
            values = tensor.detach().double().numpy().ravel()
            entry[name] = [self._size, list(tensor.shape)]
            self._chunks.append(values)
            self._size += values.size
        return entry

    def save(self, path: Path, index: dict[str, Any], modules: dict[str, bytes]) -> None:
        """Writes all of it."""
        arrays = {f"pickle_{name}": np.frombuffer(data, np.uint8) for name, data in modules.items()}
        arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
        arrays["values"] = np.concatenate(self._chunks)
        np.savez_compressed(path, **arrays)
