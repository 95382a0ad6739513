"""Modules that build the dense kernel from ``weight``, ``P`` and ``SIG``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import Module

from DCLS import _checks
from DCLS._ops import call_construct
from DCLS._spec import SIGMA_VERSIONS
from DCLS._types import Version
from DCLS.functional import construct_kernel, construct_support
from DCLS.nn.axes import as_floats, axis_order, to_kernel_axes

__all__ = [
    "ConstructKernel1d",
    "ConstructKernel2_1d",
    "ConstructKernel2d",
    "ConstructKernel3_1d",
    "ConstructKernel3_2d",
    "ConstructKernel3d",
]


#: Settings that are properties, and that layers and builders have.
_SETTINGS = ("version", "dilated_kernel_size")


def keep(module: Module, name: str, value: Any) -> None:
    """Holds the value of a property as the attribute ``_kept_NAME``, which the property reads.

    Under its own name, too, as 0.1.1 held it: code formats texts with ``vars(module)``. A property
    cannot read that one: the compiler of torch 2.5 takes it for the property again, without end.
    """
    module.__dict__[name] = module.__dict__[f"_kept_{name}"] = value


def keep_state(module: Module) -> None:
    """Completes a module whose pickle has the settings under their own names only."""
    for name in _SETTINGS:
        if name in module.__dict__:
            keep(module, name, module.__dict__[name])


class _ConstructKernel(Module):
    """What all kernel builders share. They hold no parameter and no buffer."""

    #: Numbers of learnable and of dense kernel axes.
    _learnable_ndim: ClassVar[int]
    _dense_ndim: ClassVar[int] = 0

    out_channels: int
    in_channels: int
    groups: int
    kernel_count: int
    _kept_dilated_kernel_size: tuple[int, ...]
    _kept_version: Version

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        groups: int,
        kernel_count: int,
        dilated_kernel_size: int | Sequence[int],
        version: Version,
    ) -> None:
        """Creates the builder.

        Args:
            out_channels: number of output channels ``O``.
            in_channels: number of input channels ``I``.
            groups: number of groups ``g``. It divides ``O`` and ``I``.
            kernel_count: number of elements ``K`` of a kernel.
            dilated_kernel_size: number of grid points, an int or one for each learnable axis.
            version: the interpolation, one of ``DCLS.VERSIONS``.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument is out of its range or has a wrong length.
        """
        super().__init__()
        self.in_channels, self.out_channels, self.groups = _checks.channels(
            in_channels, out_channels, groups
        )
        self.kernel_count = _checks.integer("kernel_count", kernel_count, 1)
        self.dilated_kernel_size = dilated_kernel_size
        self.version = version

    @property
    def dilated_kernel_size(self) -> tuple[int, ...]:
        """Number of grid points on each learnable axis. It may be set at any time."""
        return self._kept_dilated_kernel_size

    @dilated_kernel_size.setter
    def dilated_kernel_size(self, value: int | Sequence[int]) -> None:
        size = _checks.grid_size(value, self._learnable_ndim)
        keep(self, "dilated_kernel_size", size)

    @property
    def version(self) -> Version:
        """The interpolation, one of ``DCLS.VERSIONS``. It may be set at any time."""
        return self._kept_version

    @version.setter
    def version(self, value: Version) -> None:
        _checks.check_version(value)
        keep(self, "version", value)

    def forward(self, W: Tensor, P: Tensor, SIG: Tensor | None = None) -> Tensor:
        """Builds the dense kernel.

        Args:
            W: weights, ``(*lead, kernel_count)``, where ``lead`` is ``(out_channels, in_channels /
                groups)``, followed by ``dense_kernel_size`` if there is one (transposed
                convolutions: ``(in_channels, out_channels / groups)``).
            P: positions in grid steps from the centre of their axis, ``(D, *lead, kernel_count)``
                or a shape that broadcasts to it; integers are cast to the dtype of ``W``.
            SIG: widths, shaped and cast as ``P``. A version without widths ignores it, the others
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
        """Returns the cells of the kernel whose gradient reaches an element, if they are known.

        Args:
            W: as ``forward`` takes it.
            P: as ``forward`` takes it.
            SIG: as ``forward`` takes it.

        Returns:
            A bool tensor of the kernel's shape, without a gradient. None if a subclass or a hook
            may change the kernel.
        """
        return self._build(W, P, SIG, return_support=True) if self.is_plain() else None

    def is_plain(self) -> bool:
        """Whether the kernel is what this class builds: no subclass and no hook changes it."""
        own = type(self).forward is _ConstructKernel.forward and "forward" not in self.__dict__
        hooks = (
            self._forward_hooks,
            self._forward_pre_hooks,
            self._backward_hooks,
            self._backward_pre_hooks,
        )
        return own and not any(hooks)

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
        if isinstance(W, Proxy) or isinstance(P, Proxy):
            return construct_kernel(
                W, P, SIG, dilated_kernel_size=size, version=version, sigma_min=sigma_min
            )
        # The builder has checked what the function would check.
        return call_construct(
            W, P, SIG, list(size), version, _checks.resolve_sigma_min(version, sigma_min)
        )

    def _sigma_min(self, version: str) -> float | None:  # noqa: ARG002
        """Returns the smallest width where it is not the version's own, else None."""
        # A method, not an attribute: torch.compile may take a float attribute as a symbol.
        return None

    def _broadcast(
        self, W: Tensor, P: Tensor, SIG: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gives all tensors the shapes that ``DCLS.functional.construct_kernel`` takes."""
        if isinstance(W, Proxy) or isinstance(P, Proxy):  # torch.fx knows no shapes
            return W, P, SIG
        _checks.check_tensors(weight=W, P=P)
        _checks.check_tensors(or_none=True, SIG=SIG)
        rows = [P] if SIG is None else [P, SIG]
        for name, value in zip(("P", "SIG"), rows, strict=False):
            if value.ndim != W.ndim + 1 or value.shape[0] != len(self.dilated_kernel_size):
                raise ValueError(
                    f"{name} must have shape {(len(self.dilated_kernel_size), *W.shape)}, that is "
                    f"(learnable axes, *weight.shape), or one that broadcasts to it, "
                    f"got {tuple(value.shape)}"
                )
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
        yield f"dilated_kernel_size={self.dilated_kernel_size}"
        if self.groups != 1:
            yield f"groups={self.groups}"

    def extra_repr(self) -> str:
        """Returns the settings; ``groups`` only if there are several."""
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
        # Of modules that 1.0 pickled, then of those of 0.1.1.
        if "_own_version" in self.__dict__:
            self.__dict__["version"] = self.__dict__.pop("_own_version")
        keep_state(self)
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
        version: Version,
    ) -> None:
        """Creates the builder.

        Args:
            out_channels: number of output channels ``O``.
            in_channels: number of input channels ``I``.
            groups: number of groups ``g``. It divides ``O`` and ``I``.
            kernel_count: number of elements ``K`` of a kernel at each point of the dense axes.
            dense_kernel_size: number of grid points, an int or one for each dense axis.
            dilated_kernel_size: number of grid points, an int or one for each learnable axis.
            version: the interpolation, one of ``DCLS.VERSIONS``.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument is out of its range or has a wrong length.
        """
        super().__init__(
            out_channels, in_channels, groups, kernel_count, dilated_kernel_size, version
        )
        self.dense_kernel_size = _checks.integers(
            "dense_kernel_size", dense_kernel_size, self._dense_ndim, 1, _checks.MAX_AXIS_SIZE
        )

    def _describe(self) -> Iterator[str]:
        yield from super()._describe()
        yield f"dense_kernel_size={self.dense_kernel_size}"


class ConstructKernel1d(_ConstructKernel):
    """Builds 1-D kernels: ``(O, I/g, K)`` to ``(O, I/g, S)``."""

    _learnable_ndim = 1


class ConstructKernel2d(_ConstructKernel):
    """Builds 2-D kernels: ``(O, I/g, K)`` to ``(O, I/g, S_1, S_2)``.

    As in DCLS 0.1.1 ``P[0]`` belongs to the last axis and ``P[1]`` to the first; the other way
    round for ``v0``.
    """

    _learnable_ndim = 2


class ConstructKernel3d(_ConstructKernel):
    """Builds 3-D kernels: ``(O, I/g, K)`` to ``(O, I/g, S_1, S_2, S_3)``.

    As in DCLS 0.1.1 ``P[0], P[1], P[2]`` belong to the axes 2, 1, 0, and for ``v0`` to 0, 2, 1.
    """

    _learnable_ndim = 3


class ConstructKernel2_1d(_ConstructKernelN_M):
    """Builds 2-D kernels with one dense axis: ``(O, I/g, S_1, K)`` to ``(O, I/g, S_1, S_2)``.

    For ``gauss`` the width of an element is ``|SIG| + 1.0``, where it is ``|SIG| + 0.27`` in all
    other builders.
    """

    _learnable_ndim, _dense_ndim = 1, 1

    def _sigma_min(self, version: str) -> float | None:
        return 1.0 if version == "gauss" else None


class ConstructKernel3_1d(_ConstructKernelN_M):
    """Builds 3-D kernels with two dense axes: ``(O, I/g, S_1, S_2, K)`` to ``(O, I/g, *S)``."""

    _learnable_ndim, _dense_ndim = 1, 2


class ConstructKernel3_2d(_ConstructKernelN_M):
    """Builds 3-D kernels with one dense axis: ``(O, I/g, S_1, K)`` to ``(O, I/g, S_1, S_2, S_3)``.

    ``P[0]`` belongs to ``S_2`` and ``P[1]`` to ``S_3``, for every version.
    """

    _learnable_ndim, _dense_ndim = 2, 1
