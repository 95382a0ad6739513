"""What a run of the demo can be told, with its defaults and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from DCLS._spec import SIGMA_VERSIONS, VERSIONS
from DCLS._types import Version

#: Side of the feature map that the depthwise layers see: digits of 24x24 behind a stem of stride 2.
MAP_SIZE = 12
#: Side of the plain network's depthwise kernels, as in ConvNeXt.
PLAIN_KERNEL_SIZE = 7
#: Beyond this side a kernel centred anywhere on the map has cells that never meet it.
MAX_KERNEL_SIZE = 2 * MAP_SIZE - 1

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class SettingError(ValueError):
    """A setting is out of its range.

    Attributes:
        name: the setting, as it is named in :class:`Settings`.
        problem: what it takes and what it got.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


def numbers_per_element(version: str) -> int:
    """Learnable numbers of one element in 2-D: its weight, two positions and perhaps two widths."""
    return 5 if version in SIGMA_VERSIONS else 3


def _check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(name, f"must be an integer {wanted}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise SettingError(name, f"must be an integer {wanted}, got {value}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run of the demo.

    Args:
        epochs: passes over the training images, at least 1.
        batch_size: images a step, over all processes together, at least 1.
        lr: peak learning rate, finite and positive; that of the positions is five times as high.
        version: interpolation of the DCLS layers, ``v0``, ``v1``, ``max`` or ``gauss``.
        kernel_size: side of the DCLS kernels, odd, from 3 to 23.
        kernel_count: elements of a DCLS kernel; None for as many as the 49 weights of a plain 7x7
            kernel pay for (9 for ``gauss`` and ``max``, 16 for ``v0`` and ``v1``) or, where it is
            less, the dense kernel of ``kernel_size``. Never so many that an element costs more
            learnable numbers than the dense kernel.
        seed: of the initial values and of the order of the images, from 0 to 2**32 - 1.
        dtype: ``float32`` or ``float64``.
        baseline: whether to train the plain network, too.

    Raises:
        SettingError: a setting is out of its range.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-2
    version: Version = "gauss"
    kernel_size: int = 17
    kernel_count: int | None = None
    seed: int = 0
    dtype: str = "float32"
    baseline: bool = True

    def __post_init__(self) -> None:
        """Checks the settings."""
        _check_int("epochs", self.epochs, 1)
        _check_int("batch_size", self.batch_size, 1)
        _check_int("seed", self.seed, 0, 2**32 - 1)
        if isinstance(self.lr, bool) or not isinstance(self.lr, (int, float)):
            raise SettingError("lr", f"must be a positive number, got {self.lr!r}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SettingError("lr", f"must be a finite, positive number, got {self.lr}")
        for name, known in (("version", VERSIONS), ("dtype", tuple(DTYPES))):
            if getattr(self, name) not in known:
                got = getattr(self, name)
                raise SettingError(name, f"must be one of {', '.join(known)}, got {got!r}")
        _check_int("kernel_size", self.kernel_size, 3, MAX_KERNEL_SIZE)
        if self.kernel_size % 2 == 0:
            raise SettingError("kernel_size", f"must be odd, got {self.kernel_size}")
        if self.kernel_count is not None:
            _check_int("kernel_count", self.kernel_count, 1, self._most_elements)

    @property
    def _most_elements(self) -> int:
        return self.kernel_size**2 // numbers_per_element(self.version)

    @property
    def elements(self) -> int:
        """Elements of a DCLS kernel: ``kernel_count``, or the number that None stands for."""
        if self.kernel_count is not None:
            return self.kernel_count
        affordable = PLAIN_KERNEL_SIZE**2 // numbers_per_element(self.version)
        return min(affordable, self._most_elements)

    @property
    def plain_kernel_size(self) -> int:
        """Side of the plain kernels: 7, or the next odd size that has as many parameters as ours.

        So the plain network is never the smaller one, whatever ``kernel_count`` asks for.
        """
        size = PLAIN_KERNEL_SIZE
        while size**2 < self.elements * numbers_per_element(self.version):
            size += 2
        return size
