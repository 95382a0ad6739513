"""How a DCLS layer convolves, and the plain layer that computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd

from DCLS.functional import direct_conv
from DCLS.method import expected_cells, prefers_direct
from DCLS.nn.builders import _ConstructKernel
from DCLS.nn.parameters import _DclsParameters

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

#: The plain layers, by whether they are transposed and by their number of axes.
_PLAIN: dict[tuple[bool, int], Callable[..., _ConvNd]] = {
    (False, 1): nn.Conv1d,
    (False, 2): nn.Conv2d,
    (False, 3): nn.Conv3d,
    (True, 1): nn.ConvTranspose1d,
    (True, 2): nn.ConvTranspose2d,
    (True, 3): nn.ConvTranspose3d,
}


class _DclsModule(_DclsParameters):
    """A DCLS layer: what :class:`_DclsNd` and :class:`_DclsN_Md` share."""

    def _shape_kernel(self, kernel: Tensor) -> Tensor:
        """Gives what ``DCK`` builds the axes of the convolution."""
        return kernel

    def _dense_kernel(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        """Returns the kernel to convolve with."""
        return self._shape_kernel(self.DCK(weight, P, SIG))

    def _kernel_support(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor | None:
        """Returns which cells of that kernel need a gradient; None for all of them."""
        if not isinstance(self.DCK, _ConstructKernel):
            return None
        support = self.DCK.support(weight, P, SIG)
        return None if support is None else self._shape_kernel(support)

    def _is_direct(self, input: Tensor, kernel: Tensor) -> bool:
        """Whether to convolve with :func:`DCLS.functional.direct_conv`."""
        if self.method != "auto":
            return self.method == "direct"
        ndim = len(self.stride)
        if input.ndim not in (ndim + 1, ndim + 2) or input.shape[-ndim - 1] != self.in_channels:
            return False  # torch's convolution says what is wrong, as it did in 0.1.1
        cells = math.prod(kernel.shape[2:])
        if isinstance(self.DCK, _ConstructKernel):
            cells = expected_cells(
                self.version,
                self.kernel_count,
                self.dense_kernel_size,
                self.dilated_kernel_size,
                self.DCK._sigma_min(self.version),
            )
        return prefers_direct(input, kernel, cells)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        """Builds the kernel with ``self.DCK`` and convolves ``input`` with it."""
        if self.transposed:
            raise NotImplementedError(
                f"{type(self).__name__} must define _conv_forward: it is transposed"
            )
        kernel = self._dense_kernel(weight, P, SIG)
        x, padding = input, self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * len(self.stride)
        if not self._is_direct(x, kernel):
            convolve = _CONV[len(self.stride)]
            return convolve(x, kernel, bias, self.stride, padding, groups=self.groups)
        trains = torch.is_grad_enabled() and kernel.requires_grad
        support = self._kernel_support(weight, P, SIG) if trains else None
        return direct_conv(x, kernel, bias, self.stride, padding, 1, self.groups, support)

    def forward(self, input: Tensor) -> Tensor:
        """Convolves ``input`` as the ``torch.nn`` layer with the same number of axes does.

        Args:
            input: ``(N, in_channels, *spatial)`` or ``(in_channels, *spatial)``.

        Returns:
            ``(N, out_channels, *spatial)`` or ``(out_channels, *spatial)``.

        Raises:
            TypeError: the dtypes of ``weight``, ``P`` and ``SIG`` differ, or the class does not
                take them. A direct or an im2col convolution also raises it for an input of another
                dtype.
            ValueError: ``version`` needs ``SIG`` and there is none, or ``P`` or ``SIG`` does not
                fit ``weight``. A direct or an im2col convolution also raises it for an input that
                does not fit.
            RuntimeError: the number of axes, channels, size, dtype or device of the input does not
                fit (torch's own error), or the build or the machine cannot serve the tensors' GPU.
        """
        return self._conv_forward(input, self.weight, self.bias, self.P, self.SIG)

    def to_conv(self) -> _ConvNd:
        """Returns the plain convolution that computes the same, with the kernel as it is now.

        Its parameters are copies: later edits of either layer leave the other alone. They have the
        device and the dtype of ``weight`` and ``bias``. Its ``weight`` requires a gradient if any
        of ``weight``, ``P`` and ``SIG`` does, its ``bias`` if ``bias`` does. It is in training mode
        if this layer is. :func:`DCLS.fold` does the same for a whole model.

        Returns:
            A :class:`torch.nn.Conv1d`, ``Conv2d`` or ``Conv3d``; for a transposed layer a
            :class:`torch.nn.ConvTranspose1d`, ``2d`` or ``3d``. It has the same stride, padding,
            ``padding_mode`` and groups, and its weight is the dense kernel.

        Raises:
            TypeError: a subclass has its own ``forward`` or ``_conv_forward``, which need not
                compute a convolution with the kernel. Its own ``DCK`` is fine.
            RuntimeError: the layer has forward hooks, which a plain layer would not run.
            ValueError: ``version`` needs ``SIG`` and there is none, or ``DCK`` builds a kernel that
                does not fit the channels.
        """
        self._refuse_other_forwards()
        parameters = [self.weight, self.P, *(() if self.SIG is None else (self.SIG,))]
        with torch.no_grad():
            # A new tensor even where a DCK returns one of the parameters.
            kernel = self._dense_kernel(self.weight, self.P, self.SIG).to(self.weight.dtype).clone()
        first, second = self.in_channels, self.out_channels
        lead = (first, second // self.groups) if self.transposed else (second, first // self.groups)
        ndim = len(self.stride)
        if kernel.ndim != ndim + 2 or kernel.shape[:2] != lead:
            raise ValueError(
                f"DCK must build a kernel of shape {lead} and {ndim} axes more, "
                f"got {tuple(kernel.shape)}"
            )
        more = {"output_padding": self.output_padding} if self.transposed else {}
        # On the meta device, so that no memory is taken and no random number is drawn.
        conv = _PLAIN[self.transposed, ndim](
            self.in_channels,
            self.out_channels,
            tuple(kernel.shape[2:]),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            bias=False,
            padding_mode=self.padding_mode,
            device="meta",
            **more,
        )
        conv.weight = Parameter(kernel, requires_grad=any(p.requires_grad for p in parameters))
        if self.bias is not None:
            conv.bias = Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        conv._reversed_padding_repeated_twice = list(self._reversed_padding_repeated_twice)
        return conv.train(self.training)

    def _refuse_other_forwards(self) -> None:
        """Raises if :meth:`forward` may be more than the convolution with the dense kernel."""
        package = __name__.partition(".")[0]
        for name in ("forward", "_conv_forward"):
            definition = vars(self).get(name) or getattr(type(self), name)
            if getattr(definition, "__module__", "").partition(".")[0] != package:
                raise TypeError(
                    f"{type(self).__name__} has a {name} of its own, so that no plain convolution "
                    "is known to compute the same"
                )
        if self._forward_hooks or self._forward_pre_hooks:
            raise RuntimeError(
                f"{type(self).__name__} has forward hooks, which a plain convolution would not "
                "run; remove them first (torch.nn.utils.prune.remove, remove_weight_norm, ...)"
            )
