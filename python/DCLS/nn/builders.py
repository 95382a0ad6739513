"""Modules that build the dense kernel from ``weight``, ``P`` and ``SIG``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from DCLS._spec import SIGMA_VERSIONS, check_version
from DCLS.functional import construct_kernel, construct_support
from DCLS.nn import arguments as _arguments
from DCLS.nn.axes import as_floats, axis_order, to_kernel_axes

__all__ = [
    "ConstructKernel1d",
    "ConstructKernel2_1d",
    "ConstructKernel2d",
    "ConstructKernel3_1d",
    "ConstructKernel3_2d",
    "ConstructKernel3d",
]


class _ConstructKernel(Module):
    """What all kernel builders share. They hold no parameter and no buffer."""

    #: Numbers of learnable and of dense kernel axes.
    _learnable_ndim: ClassVar[int]
    _dense_ndim: ClassVar[int] = 0

    out_channels: int
    in_channels: int
    groups: int
    kernel_count: int
    dilated_kernel_size: tuple[int, ...]

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        groups: int,
        kernel_count: int,
        dilated_kernel_size: int | Sequence[int],
        version: str,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = _arguments.channels(
            in_channels, out_channels, groups
        )
        self.kernel_count = _arguments.integer("kernel_count", kernel_count, 1)
        self.dilated_kernel_size = _arguments.integers(
            "dilated_kernel_size", dilated_kernel_size, self._learnable_ndim, 1
        )
        self.version = version

    @property
    def version(self) -> str:
        """The interpolation, one of ``DCLS.VERSIONS``; may be set at any time."""
        return self._own_version

    @version.setter
    def version(self, value: str) -> None:
        self._own_version = check_version(value)

    def forward(self, W: Tensor, P: Tensor, SIG: Tensor | None = None) -> Tensor:
        """Builds the dense kernel.

        Args:
            W: weights, ``(*lead, kernel_count)``, where ``lead`` is ``(out_channels, in_channels /
                groups)``, followed by ``dense_kernel_size`` if there is one (transposed
                convolutions: ``(in_channels, out_channels / groups)``).
            P: positions in grid steps from the centre of their axis, ``(D, *lead, kernel_count)``
                or a shape that broadcasts to it; integers are cast to the dtype of ``W``.
            SIG: widths, shaped and cast as ``P``. Versions without a width ignore it, the others
                need it; default None.

        Returns:
            The kernel, ``(*lead, *dilated_kernel_size)``, differentiable in all three.

        Raises:
            TypeError: an argument is no tensor, or the dtypes do not match.
            ValueError: the shapes or devices do not match, or ``SIG`` is missing.
            RuntimeError: the tensors are on a GPU that this build or machine cannot serve.
        """
        kernel: Tensor = self._build(W, P, SIG, return_support=False)
        return kernel

    def support(self, W: Tensor, P: Tensor, SIG: Tensor | None = None) -> Tensor | None:
        """Returns which cells of the kernel can weigh or move an element, if that is known.

        Args:
            W: as ``forward`` takes it.
            P: as ``forward`` takes it.
            SIG: as ``forward`` takes it.

        Returns:
            A bool tensor of the kernel's shape, without a gradient. None if a subclass or a hook
            makes of the kernel something that this class does not know.
        """
        return self._build(W, P, SIG, return_support=True) if self.is_plain() else None

    def is_plain(self) -> bool:
        """Whether the kernel is what this class builds: no subclass and no hook changes it."""
        own = type(self).forward is _ConstructKernel.forward and "forward" not in self.__dict__
        hooks = (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
        )
        return own and not hooks

    def _build(self, W: Tensor, P: Tensor, SIG: Tensor | None, return_support: bool) -> Tensor:
        """Returns the kernel, or its support."""
        version = self.version
        order = axis_order(len(self.dilated_kernel_size), version, dense_ndim=self._dense_ndim)
        W, P, SIG = self._broadcast(W, P, SIG if version in SIGMA_VERSIONS else None)
        P = to_kernel_axes(P, order)
        SIG = None if SIG is None else to_kernel_axes(SIG, order)
        size, sigma_min = self.dilated_kernel_size, self._sigma_min(version)
        if return_support:
            return construct_support(
                P, SIG, dilated_kernel_size=size, version=version, sigma_min=sigma_min
            )
        return construct_kernel(
            W, P, SIG, dilated_kernel_size=size, version=version, sigma_min=sigma_min
        )

    def _sigma_min(self, version: str) -> float | None:  # noqa: ARG002
        """Returns the smallest width where it is not the version's own, else None."""
        # A method, not an attribute: torch.compile may take a float attribute as a symbol.
        return None

    def _broadcast(
        self, W: Tensor, P: Tensor, SIG: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gives all tensors the shapes that ``DCLS.functional.construct_kernel`` takes."""
        if not isinstance(W, Tensor):
            raise TypeError(f"weight must be a tensor, got {type(W).__name__}")
        named = {"P": P} if SIG is None else {"P": P, "SIG": SIG}
        for name, value in named.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
            if value.ndim != W.ndim + 1 or value.shape[0] != len(self.dilated_kernel_size):
                raise ValueError(
                    f"{name} must have shape {(len(self.dilated_kernel_size), *W.shape)}, that is "
                    f"(learnable axes, *weight.shape), or one that broadcasts to it, "
                    f"got {tuple(value.shape)}"
                )
        rows = list(named.values())
        if any(value.shape[1:] != W.shape for value in rows):
            try:
                shape = torch.broadcast_shapes(W.shape, *(value.shape[1:] for value in rows))
            except RuntimeError:
                raise ValueError(
                    "weight, P and SIG must have shapes that broadcast (P and SIG but for their "
                    f"first axis), got weight {tuple(W.shape)}, P {tuple(P.shape)}, "
                    f"SIG {None if SIG is None else tuple(SIG.shape)}"
                ) from None
            W = W.expand(shape)
            rows = [value.expand(value.shape[0], *shape) for value in rows]
        rows = [as_floats(value, W.dtype) for value in rows]
        return W, rows[0], rows[1] if SIG is not None else None

    def _describe(self) -> Iterator[str]:
        """Yields the parts of ``extra_repr``."""
        yield f"{self.in_channels}, {self.out_channels}, kernel_count={self.kernel_count}"
        yield f"version={self.version}"
        if self.dilated_kernel_size != (1,) * len(self.dilated_kernel_size):
            yield f"dilated_kernel_size={self.dilated_kernel_size}"
        if self.groups != 1:
            yield f"groups={self.groups}"

    def extra_repr(self) -> str:
        """Returns the settings that differ from the defaults."""
        return ", ".join(self._describe())

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Older Dcls2_1d kept its grid in these buffers.
        for name in _OLD_GRID:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # Of modules that 0.1.1 pickled.
        if "version" in self.__dict__:
            self._own_version = self.__dict__.pop("version")
        for name in _OLD_GRID:
            self.__dict__.pop(name, None)
            self._buffers.pop(name, None)


_OLD_GRID = ("IDX", "lim")


class _ConstructKernelN_M(_ConstructKernel):
    """A builder whose kernel has dense axes before the learnable ones."""

    dense_kernel_size: tuple[int, ...]

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        groups: int,
        kernel_count: int,
        dense_kernel_size: int | Sequence[int],
        dilated_kernel_size: int | Sequence[int],
        version: str,
    ) -> None:
        super().__init__(
            out_channels, in_channels, groups, kernel_count, dilated_kernel_size, version
        )
        self.dense_kernel_size = _arguments.integers(
            "dense_kernel_size", dense_kernel_size, self._dense_ndim, 1
        )

    def _describe(self) -> Iterator[str]:
        yield from super()._describe()
        if self.dense_kernel_size != (1,) * len(self.dense_kernel_size):
            yield f"dense_kernel_size={self.dense_kernel_size}"


class ConstructKernel1d(_ConstructKernel):
    """Builds 1-D kernels: ``(O, I/g, K)`` to ``(O, I/g, S)``.

    Args:
        out_channels: number of output channels ``O``.
        in_channels: number of input channels ``I``.
        groups: number of groups ``g``, which divides both.
        kernel_count: number of elements ``K`` of a kernel.
        dilated_kernel_size: number of grid points of each axis, an int or one for each axis.
        version: one of ``DCLS.VERSIONS``.

    Attributes:
        version: the interpolation; may be set. That of a layer that has this as its ``DCK``, too.
        out_channels: as given.
        in_channels: as given.
        groups: as given.
        kernel_count: as given.
        dilated_kernel_size: one int for each axis.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.
    """

    _learnable_ndim = 1


class ConstructKernel2d(_ConstructKernel):
    """Builds 2-D kernels: ``(O, I/g, K)`` to ``(O, I/g, S_1, S_2)``.

    Arguments, attributes and errors as ``ConstructKernel1d``. ``P[0]`` belongs to the last
    axis (``v0``: to the first), as in DCLS 0.1.1.
    """

    _learnable_ndim = 2


class ConstructKernel3d(_ConstructKernel):
    """Builds 3-D kernels: ``(O, I/g, K)`` to ``(O, I/g, S_1, S_2, S_3)``.

    Arguments, attributes and errors as ``ConstructKernel1d``. ``P[0], P[1], P[2]`` belong to
    the axes 2, 1, 0 (``v0``: 0, 2, 1), as in DCLS 0.1.1.
    """

    _learnable_ndim = 3


class ConstructKernel2_1d(_ConstructKernelN_M):
    """Builds 2-D kernels with one dense axis: ``(O, I/g, S_1, K)`` to ``(O, I/g, S_1, S_2)``.

    Arguments, attributes and errors as ``ConstructKernel3_1d``. Its ``gauss`` is wider than
    that of the others: ``|SIG| + 1.0``, as where it comes from.
    """

    _learnable_ndim, _dense_ndim = 1, 1

    def _sigma_min(self, version: str) -> float | None:
        return 1.0 if version == "gauss" else None


class ConstructKernel3_1d(_ConstructKernelN_M):
    """Builds 3-D kernels with two dense axes: ``(O, I/g, S_1, S_2, K)`` to ``(O, I/g, *S)``.

    Args:
        out_channels: number of output channels ``O``.
        in_channels: number of input channels ``I``.
        groups: number of groups ``g``, which divides both.
        kernel_count: number of elements ``K`` of a kernel at each point of the dense axes.
        dense_kernel_size: number of grid points of the dense axes, which come first.
        dilated_kernel_size: number of grid points of the learnable axes, which come last.
        version: one of ``DCLS.VERSIONS``.

    Attributes:
        version: the interpolation; may be set. That of a layer that has this as its ``DCK``, too.
        out_channels: as given.
        in_channels: as given.
        groups: as given.
        kernel_count: as given.
        dense_kernel_size: one int for each dense axis.
        dilated_kernel_size: one int for each learnable axis.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.
    """

    _learnable_ndim, _dense_ndim = 1, 2


class ConstructKernel3_2d(_ConstructKernelN_M):
    """Builds 3-D kernels with one dense axis: ``(O, I/g, S_1, K)`` to ``(O, I/g, S_1, S_2, S_3)``.

    Arguments, attributes and errors as ``ConstructKernel3_1d``. ``P[0]`` belongs to ``S_2``,
    ``P[1]`` to ``S_3``.
    """

    _learnable_ndim, _dense_ndim = 2, 1
