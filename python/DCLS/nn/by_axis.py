"""Positions and kernels by axis, whatever the order of the rows of ``P``."""

from __future__ import annotations

import torch
from torch import Tensor

from DCLS._spec import SIGMA_VERSIONS
from DCLS.functional import construct_support
from DCLS.nn.axes import as_floats, to_kernel_axes, to_position_rows
from DCLS.nn.builders import _ConstructKernel
from DCLS.nn.choosing import _ChoosesMethod
from DCLS.nn.editing import edit, gather, on_whole


class _ByAxis(_ChoosesMethod):
    """A layer whose positions can be read and set by the axis of the kernel.

    What is read from a layer that processes share as ``DTensor`` is whole: all of them must ask.
    """

    def _dense_kernel(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        """Returns the kernel to convolve with."""
        raise NotImplementedError

    def kernel(self) -> Tensor:
        """Returns the dense kernel, differentiable in ``weight``, ``P`` and ``SIG``.

        Returns:
            What the weight of the layer's ``to_conv()`` holds: ``(out_channels, in_channels /
            groups, *kernel_size)``, or ``(in_channels, out_channels / groups, *kernel_size)`` for
            a transposed layer. Its dtype is that of ``weight``.

        Raises:
            ValueError: ``version`` needs ``SIG`` and there is none.
        """
        SIG = None if self.SIG is None else gather(self.SIG)
        weight = gather(self._used_weight())
        kernel = self._dense_kernel(weight, gather(self.P), SIG).to(self.weight.dtype)
        # Not the one that a frozen layer keeps: the caller may write to it.
        return kernel if getattr(self, "_kernel_cache", None) is None else kernel.clone()

    def positions(self) -> Tensor:
        """Returns the positions by axis: row ``d`` belongs to learnable axis ``d`` of the kernel.

        The rows of ``P`` have another order that depends on the version, see the class. Here the
        order is that of the kernel's axes: depth, height, width, for every version.

        Returns:
            A tensor of the shape and dtype of ``P``, in grid steps from the centre ``S // 2``,
            differentiable in ``P``. Where there is nothing to reorder, it is ``P`` itself.
        """
        return to_kernel_axes(gather(self.P), self._row_axes())

    def set_positions(self, positions: Tensor) -> None:
        """Sets ``P`` in place from positions by axis, as ``positions()`` returns them.

        Positions outside the kernel are taken as they are: ``clamp_parameters`` moves them in. The
        ``P`` of several layers that share it is set for all of them. A computed ``P`` is edited as
        ``clamp_parameters`` says, and a DTensor becomes what its first process was given.

        Args:
            positions: real numbers, of the shape of ``P`` or one that broadcasts to it.

        Raises:
            TypeError: ``positions`` is no tensor of real numbers.
            ValueError: its shape does not fit.
            RuntimeError: the next forward would undo the edit, see ``clamp_parameters``.
        """
        whole = _fitting("positions", positions, self.P.shape)
        # A copy: the argument may be a view of P.
        rows = to_position_rows(whole, self._row_axes()).clone()
        edit(self, "P", on_whole(lambda P: P.copy_(rows)), exact=True)

    def delays(self) -> Tensor:
        """Returns the positions along the one learnable axis as delays in steps.

        The last of the ``S`` points of the kernel is now: ``delay = S - 1 - (P + S // 2)``. So 0 is
        the present input where ``S - 1`` zeros stand before the first one, and ``S - 1`` the oldest
        input that the kernel reaches.

        Returns:
            A tensor of the shape of ``P`` without its first axis, differentiable in ``P``.

        Raises:
            TypeError: the layer has several learnable axes, or it is transposed, so that its
                elements write to later outputs and do not read earlier inputs.
        """
        return self._last_position("delays") - as_floats(gather(self.P)[0], self.weight.dtype)

    def set_delays(self, delays: Tensor) -> None:
        """Sets ``P`` in place from delays in steps, as ``delays()`` returns them.

        Args:
            delays: real numbers, of the shape of ``P`` without its first axis, or one that
                broadcasts to it. From 0 to ``S - 1`` they are in the kernel.

        Raises:
            TypeError: as ``delays`` and ``set_positions``.
            ValueError: as ``set_positions``.
            RuntimeError: as ``set_positions``.
        """
        last = self._last_position("delays")
        whole = _fitting("delays", delays, self.P.shape[1:])
        self.set_positions(last - whole)

    @torch.no_grad()
    def _lost_elements(self) -> Tensor:
        """Returns which elements reach no grid point, of the shape of a row of ``P``."""
        version, builder = self.version, getattr(self, "DCK", None)
        sigma_min = builder._sigma_min(version) if isinstance(builder, _ConstructKernel) else None
        rows = [as_floats(_ByAxis.positions(self).detach(), self.weight.dtype)]
        if self.SIG is not None and version in SIGMA_VERSIONS:
            SIG = as_floats(gather(self.SIG.detach()), self.weight.dtype)
            rows = list(torch.broadcast_tensors(*rows, to_kernel_axes(SIG, self._row_axes())))
        shape = rows[0].shape[1:]
        found = torch.ones(shape, dtype=torch.bool, device=rows[0].device)
        for axis, size in enumerate(self.dilated_kernel_size):
            # Axis by axis: the memory is that of lines, not of kernels.
            of_axis = [row[axis].reshape(1, -1, 1) for row in rows]
            support = construct_support(
                of_axis[0],
                of_axis[1] if len(rows) > 1 else None,
                dilated_kernel_size=size,
                version=version,
                sigma_min=sigma_min,
            )
            found &= support.any(-1).reshape(shape)
        return ~found

    def _last_position(self, what: str) -> int:
        """Returns the position of the last grid point; raises for a layer without delays."""
        if len(self.dilated_kernel_size) != 1:
            raise TypeError(
                f"{what} need one learnable axis, {type(self).__name__} has "
                f"{len(self.dilated_kernel_size)}; positions() gives all of them"
            )
        if self.transposed:
            raise TypeError(
                f"{what} need a layer that reads earlier inputs; {type(self).__name__}, which is "
                "transposed, writes to later outputs"
            )
        ((_, last),) = self._position_limits()
        return last


def _fitting(name: str, value: object, shape: torch.Size) -> Tensor:
    """Returns ``value`` in ``shape``; raises unless it is a tensor of real numbers that fits."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
    try:
        return value.detach().expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must have the shape {tuple(shape)}, or one that broadcasts to it, got "
            f"{tuple(value.shape)}"
        ) from None
