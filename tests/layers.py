"""The convolution classes as the tests of the modules see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import DCLS.construct.modules as modules
from DCLS import _spec, reference

# Written down apart from the package's own table: AXES[learnable axes, is it v0][i] is the kernel
# axis that P[i] belongs to. DclsN_Md counts from its first learnable axis, in order.
AXES = {
    (1, True): (0,),
    (1, False): (0,),
    (2, True): (0, 1),
    (2, False): (1, 0),
    (3, True): (0, 2, 1),
    (3, False): (2, 1, 0),
}


@dataclass(frozen=True)
class Layer:
    """A class, the number of its axes and a small size of its kernel with unequal axes."""

    name: str
    ndim: int
    size: tuple[int, ...]
    dense: tuple[int, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def transposed(self) -> bool:
        return "Transpose" in self.name

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """The size of the kernel that is convolved with."""
        if self.name == "Dcls2dK1d":
            return (1, *self.size) if self.more["flat_dim"] else (*self.size, 1)
        return self.dense + self.size

    def make(self, *args: Any, **kwargs: Any) -> Any:
        """Builds the module; 4 to 6 channels and 3 elements unless told otherwise."""
        settings: dict[str, Any] = {"dilated_kernel_size": self.size, **self.more}
        if self.dense:
            settings["dense_kernel_size"] = self.dense
        if not args:
            settings |= {"in_channels": 4, "out_channels": 6, "kernel_count": 3}
        return getattr(modules, self.name)(*args, **{**settings, **kwargs})

    def input(self, module: Any, *lead: int) -> Tensor:
        """Draws an input a few points longer than the kernel."""
        lengths = [size + 2 + axis for axis, size in enumerate(self.kernel_size)]
        dtype = module.weight.dtype
        return torch.randn(*lead, module.in_channels, *lengths, dtype=torch.float64).to(dtype)

    def axes(self, version: str) -> tuple[int, ...]:
        """The learnable axis of each row of P."""
        ndim = len(self.size)
        return tuple(range(ndim)) if self.dense else AXES[ndim, version == "v0"]

    def kernel(self, module: Any, version: str | None = None) -> Tensor:
        """Builds the kernel to convolve with by the oracle."""
        version = version or module.version
        rows: list[Any] = []
        for rows_of in (module.P, module.SIG):
            ordered = [None] * len(self.size)
            if rows_of is not None:
                for row, axis in enumerate(self.axes(version)):
                    ordered[axis] = rows_of[row].to(module.weight.dtype)
            rows.append(torch.stack(ordered) if rows_of is not None else None)
        width = 1.0 if (self.name, version) == ("Dcls2_1d", "gauss") else None
        kernel = reference.construct_kernel(
            module.weight,
            rows[0],
            rows[1] if version in _spec.SIGMA_VERSIONS else None,
            dilated_kernel_size=module.dilated_kernel_size,
            version=version,
            sigma_min=width,
        )
        return kernel.reshape(*kernel.shape[:2], *self.kernel_size)

    def torch_twin(self, module: Any, **kwargs: Any) -> nn.Module:
        """Returns the ``torch.nn`` layer that computes the same, its kernel made by the oracle."""
        kind = getattr(nn, f"Conv{'Transpose' if self.transposed else ''}{self.ndim}d")
        twin: nn.Module = kind(
            module.in_channels,
            module.out_channels,
            self.kernel_size,
            groups=module.groups,
            bias=module.bias is not None,
            dtype=module.weight.dtype,
            **kwargs,
        )
        with torch.no_grad():
            twin.weight.copy_(self.kernel(module))
            if module.bias is not None:
                twin.bias.copy_(module.bias)
        return twin


LAYERS = [
    Layer("Dcls1d", 1, (6,)),
    Layer("Dcls2d", 2, (4, 7)),
    Layer("Dcls3d", 3, (2, 3, 5)),
    Layer("Dcls2dK1d", 2, (5,), more={"flat_dim": 0}),
    Layer("Dcls2dK1d", 2, (6,), more={"flat_dim": 1}),
    Layer("Dcls2_1d", 2, (6,), dense=(3,)),
    Layer("Dcls3_1d", 3, (5,), dense=(2, 3)),
    Layer("Dcls3_2d", 3, (3, 6), dense=(2,)),
    Layer("DclsTranspose1d", 1, (5,)),
    Layer("DclsTranspose2d", 2, (4, 7)),
    Layer("DclsTranspose3d", 3, (2, 3, 5)),
]

FORWARD = [layer for layer in LAYERS if not layer.transposed]
TRANSPOSED = [layer for layer in LAYERS if layer.transposed]


def layer_id(layer: Layer) -> str:
    """The name of a layer in pytest's output."""
    return layer.name + "".join(f"-{key}{value}" for key, value in layer.more.items())


def assert_close(got: Tensor, want: Tensor, relative: float = 1e-10) -> None:
    """Compares the worst element with the largest one."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    assert (got - want).abs().max() <= relative * want.abs().max()


class Negative(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return -x.abs()
