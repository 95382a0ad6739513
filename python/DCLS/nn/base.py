"""How a DCLS layer convolves, and the plain layer that computes the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd

from DCLS._checks import check_not_freed, resolve_sigma_min
from DCLS._ops import layer
from DCLS._ops.conv import keep_lists
from DCLS._spec import SIGMA_VERSIONS
from DCLS.functional import direct_conv
from DCLS.method import (
    convolution_dtype,
    is_tracing,
    logger,
    may_wait_for,
)
from DCLS.nn.builders import _ConstructKernel
from DCLS.nn.by_axis import _ByAxis
from DCLS.nn.editing import gather
from DCLS.nn.from_conv import PLAIN, FromConv
from DCLS.nn.frozen import KernelCache, has_global_hook, may_keep
from DCLS.nn.layout import KeepsLayout

if TYPE_CHECKING:
    from typing_extensions import Self

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


# Dynamo takes torch's own question for False.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _refuse_onnx(name: str) -> None:
    """Raises while torch exports to ONNX."""
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            f"{name} cannot be exported to ONNX, which has no operator for it. Export "
            "DCLS.fold(model), which computes the same by plain convolutions"
        )


class _DclsModule(_ByAxis, FromConv):
    """A DCLS layer: what ``_DclsNd`` and ``_DclsN_Md`` share."""

    #: Whether the log has said that elements of this layer left the kernel.
    _reported_lost = False
    #: Where ``DCLS.freeze`` keeps the kernel; None for a layer that is not frozen.
    _kernel_cache: KernelCache[Tensor] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_layout(tensor: Tensor) -> Tensor:
            with KeepsLayout():
                return fn(tensor)

        return super()._apply(keep_layout, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _shape_kernel(self, kernel: Tensor) -> Tensor:
        """Gives what ``DCK`` builds the axes of the convolution."""
        return kernel

    def _dense_kernel(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        """Returns the kernel to convolve with."""
        if not isinstance(self.DCK, _ConstructKernel) and not torch.compiler.is_compiling():
            self._check_wrappers()
        cache = self._cache_to_use(weight, P, SIG)
        if cache is None:
            return self._shape_kernel(self.DCK(weight, P, SIG))
        builder = self.DCK
        assert isinstance(builder, _ConstructKernel)
        version, autocast = builder.version, torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if autocast else None
        sizes = builder.dilated_kernel_size, self._whole_kernel_size()
        settings = (*sizes, version, builder._sigma_min(version), dtype)
        tensors = [t for t in (weight, P, SIG) if t is not None]
        return cache(
            lambda: keep_lists(self._shape_kernel(builder(weight, P, SIG))), settings, tensors
        )

    def _cache_to_use(self, *given: Tensor | None) -> KernelCache[Tensor] | None:
        """Returns where a frozen layer keeps its kernel; None where this forward builds its own."""
        cache, builder = self._kernel_cache, self.DCK
        if cache is None or not isinstance(builder, _ConstructKernel):
            return None
        tensors = [t for t in given if t is not None]
        if not builder.is_plain() or not may_keep(tensors) or self._trains(tensors):
            return None
        return cache

    def _kernel_support(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor | None:
        """Returns which cells of that kernel need a gradient; None for all of them."""
        if not isinstance(self.DCK, _ConstructKernel):
            return None
        support = self.DCK.support(weight, P, SIG)
        return None if support is None else self._shape_kernel(support)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        """Builds the kernel with ``self.DCK`` and convolves ``input`` with it."""
        if self.transposed:
            raise NotImplementedError(
                f"{type(self).__name__} must define _conv_forward: it is transposed"
            )
        x, padding = self._pad(input)
        if isinstance(x, Proxy) or isinstance(weight, Proxy):
            return self._traced(x, padding, weight, bias, P, SIG)
        if not isinstance(self.DCK, _ConstructKernel):
            kernel = self._dense_kernel(weight, P, SIG)
            choice = self._choose(x, padding, weight, P, SIG, kernel)
        else:
            choice = self._choose(x, padding, weight, P, SIG)
            if not torch.compiler.is_compiling() and logger.isEnabledFor(logging.DEBUG):
                name = f"{type(self).__name__}({self.extra_repr()})"
                logger.debug("%s: %s: %s: %s", name, choice.source, choice.method, choice.reason)
            if choice.method == "direct" and self._cache_to_use(weight, P, SIG) is None:
                output = self._in_one_call(x, weight, bias, P, SIG, padding)
                if output is not None:
                    return output
            kernel = self._dense_kernel(weight, P, SIG)
        if choice.method != "direct":
            convolve = _CONV[len(self.stride)]
            return convolve(x, kernel, bias, self.stride, padding, groups=self.groups)
        trains = self._trains([kernel, *(t for t in (weight, P, SIG) if t is not None)])
        support = self._kernel_support(weight, P, SIG) if trains else None
        return direct_conv(x, kernel, bias, self.stride, padding, 1, self.groups, support)

    def _traced(
        self,
        x: Tensor,
        padding: tuple[int, ...] | str,
        weight: Tensor,
        bias: Tensor | None,
        P: Tensor,
        SIG: Tensor | None,
    ) -> Tensor:
        """The forward pass as nodes of ``torch.fx``, which knows no sizes: ``auto`` is ``conv``."""
        kernel = self._dense_kernel(weight, P, SIG)
        if self.method == "direct":
            return direct_conv(x, kernel, bias, self.stride, padding, 1, self.groups)
        return _CONV[len(self.stride)](x, kernel, bias, self.stride, padding, groups=self.groups)

    def _in_one_call(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        P: Tensor,
        SIG: Tensor | None,
        padding: tuple[int, ...] | str,
    ) -> Tensor | None:
        """Builds the kernel and convolves by one operator, where nothing comes between the two.

        Returns:
            The output; None where it takes the separate operators: for a kernel that a subclass or
            a hook changes, tensors of other classes or shapes than the layer's own, and while torch
            traces or compiles, where separate operators can be fused with others.
        """
        builder = self.DCK
        assert isinstance(builder, _ConstructKernel)
        if is_tracing() or not builder.is_plain() or has_global_hook():
            return None
        batched = self._is_batched(x)
        if convolution_dtype(x, weight) is None:
            return None
        size, version = self.dilated_kernel_size, self.version
        if builder.dilated_kernel_size != size:
            return None
        SIG = SIG if version in SIGMA_VERSIONS else None
        tensors = [t for t in (x, weight, P, SIG, bias) if t is not None]
        if any(type(t) is not Tensor and type(t) is not Parameter for t in tensors):
            return None
        shape = (len(size), *weight.shape)
        rows = [P] if SIG is None else [P, SIG]
        if any(t.shape != shape or t.dtype != weight.dtype for t in rows):
            return None
        if isinstance(padding, str):
            before = self._reversed_padding_repeated_twice[::-1]
            if before[::2] != before[1::2]:
                return None
            padding = before[::2]
        grad = torch.is_grad_enabled()
        output: Tensor = layer(
            x if batched else x.unsqueeze(0),
            weight,
            P,
            SIG,
            bias,
            size,
            self._row_axes(),
            version,
            resolve_sigma_min(version, builder._sigma_min(version)),
            self._whole_kernel_size(),
            self.stride,
            padding,
            self.groups,
            [grad and x.requires_grad, grad and self._any_requires_grad((weight, *rows))],
        )
        return output if batched else output.squeeze(0)

    def forward(self, input: Tensor) -> Tensor:
        """Convolves ``input`` as the ``torch.nn`` layer with the same number of axes does.

        A symbolic trace of ``torch.fx`` knows no sizes: its graph convolves by ``method``, where
        ``auto`` is ``conv``. As a leaf of the tracer the layer chooses at each call.

        Args:
            input: ``(N, in_channels, *spatial)`` or ``(in_channels, *spatial)``.

        Returns:
            ``(N, out_channels, *spatial)`` or ``(out_channels, *spatial)``.

        Raises:
            TypeError: ``input`` is no tensor, the dtypes of ``weight``, ``P`` and ``SIG`` differ,
                or the class does not take them. A direct or an im2col convolution also raises it
                for an input of another dtype.
            ValueError: ``version`` needs ``SIG`` and there is none, or ``P`` or ``SIG`` does not
                fit ``weight``. A direct or an im2col convolution also raises it for an input that
                does not fit.
            RuntimeError: the number of axes, channels, size, dtype or device of the input does not
                fit (torch's own error), or the build or the machine cannot serve the tensors' GPU.
        """
        return self._conv_forward(*self._arguments(input))

    def _arguments(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Any]:
        """Returns the arguments of ``_conv_forward``; raises if one that it needs is no tensor."""
        weight, P = self._used_weight(), self.P
        for name, tensor in (("input", input), ("weight", weight), ("P", P)):
            if not isinstance(tensor, (Tensor, Proxy)):
                raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        bias = self.bias
        check_not_freed("input", input)
        check_not_freed("bias", bias)
        if not torch.compiler.is_compiling() and logger.isEnabledFor(logging.DEBUG):
            self._report_lost()
        if is_tracing():  # else the question would cost more than small layers
            _refuse_onnx(type(self).__name__)
        return input, weight, bias, P, self.SIG

    def _report_lost(self) -> None:
        """Reports once that elements left the kernel: they learn nothing any more."""
        P: Any = self.P
        if self._reported_lost or not may_wait_for([P]):
            return
        count = int(self._lost_elements().sum())
        if count:
            self._reported_lost = True
            logger.debug(
                "%s(%s): %d of %d elements have left the kernel and learn nothing; "
                "clamp_parameters brings them back",
                type(self).__name__,
                self.extra_repr(),
                count,
                P[0].numel(),
            )

    def __prepare_scriptable__(self) -> Any:
        """Refuses ``torch.jit.script``, which asks each module for what to compile."""
        raise RuntimeError(
            f"{type(self).__name__} cannot be compiled by torch.jit.script. Give it "
            "DCLS.fold(model), which computes the same by plain convolutions; torch.jit.trace, "
            "torch.export and torch.compile take the layer itself"
        )

    def to_conv(self) -> _ConvNd | nn.Sequential:
        """Returns the plain convolution that computes the same, with the kernel as it is now.

        Its parameters are copies: later edits of either layer leave the other alone. They have the
        device and the dtype of ``weight`` and ``bias``. Its ``weight`` requires a gradient if any
        of ``weight``, ``P`` and ``SIG`` does, its ``bias`` if ``bias`` does. It is in training mode
        if this layer is. ``DCLS.fold`` does the same for a whole model.

        Returns:
            A ``torch.nn.Conv1d``, ``Conv2d`` or ``Conv3d``; for a transposed layer a
            ``torch.nn.ConvTranspose1d``, ``2d`` or ``3d``. It has the same stride, padding,
            ``padding_mode`` and groups, and its weight is the dense kernel. Where the two sides of
            the padding differ, which torch's layers do not have, a ``torch.nn.Sequential`` of a
            padding and such a convolution.

        Raises:
            TypeError: a subclass has its own ``forward`` or ``_conv_forward``, which need not
                compute a convolution with the kernel (see ``folded``). Its own ``DCK`` is fine.
            RuntimeError: the layer has forward hooks, which a plain layer would not run.
            ValueError: ``version`` needs ``SIG`` and there is none, or ``DCK`` builds a kernel that
                does not fit the channels.
        """
        self._refuse_other_forwards()
        return self._with_padding(self._plain_convolution())

    def folded(self, conv: nn.Module) -> nn.Module:
        """Returns what ``DCLS.fold`` puts in the place of this layer.

        A subclass with its own ``forward`` overrides it, and returns a module that computes the
        same around a plain convolution. That module should not need the subclass.

        Args:
            conv: what computes the same as ``forward`` of the DCLS class, as ``to_conv`` describes
                it.

        Example:
            >>> class Gated(Dcls1d):
            ...     def forward(self, input):
            ...         return super().forward(input).sigmoid()
            ...
            ...     def folded(self, conv):
            ...         return nn.Sequential(conv, nn.Sigmoid())
        """
        return conv

    def _fold(self) -> nn.Module:
        """Returns what computes the same without DCLS; raises as ``to_conv``."""
        self._refuse_other_forwards(unless_folded=True)
        module = self.folded(self._with_padding(self._plain_convolution()))
        if not isinstance(module, nn.Module) or isinstance(module, _DclsModule):
            raise TypeError(
                f"{type(self).__name__}.folded must return a torch.nn.Module without DCLS, "
                f"got {type(module).__name__}"
            )
        return module.train(self.training)

    def _with_padding(self, conv: _ConvNd) -> _ConvNd | nn.Sequential:
        """Puts the padding that ``conv`` lacks before it."""
        if not self._is_one_sided():
            return conv
        names = {"zeros": "Constant", "reflect": "Reflection", "replicate": "Replication"}
        kind = f"{names.get(self.padding_mode, 'Circular')}Pad{len(self.stride)}d"
        value = (0.0,) if self.padding_mode == "zeros" else ()
        pad: nn.Module = getattr(nn, kind)(self._explicit_padding(), *value)
        return nn.Sequential(pad, conv).train(self.training)

    def _plain_convolution(self) -> _ConvNd:
        parameters = [self.weight, self.P, *(() if self.SIG is None else (self.SIG,))]
        with torch.no_grad():
            # A new tensor even where a DCK returns one of the parameters.
            kernel = _ByAxis.kernel(self).clone()
        first, second = self.in_channels, self.out_channels
        lead = (first, second // self.groups) if self.transposed else (second, first // self.groups)
        ndim = len(self.stride)
        if kernel.ndim != ndim + 2 or kernel.shape[:2] != lead:
            raise ValueError(
                f"DCK must build a kernel of shape {lead} and {ndim} axes more, "
                f"got {tuple(kernel.shape)}"
            )
        more: dict[str, Any] = {"output_padding": self.output_padding} if self.transposed else {}
        one_sided = self._is_one_sided()
        padding: Any = 0 if one_sided else self.padding
        # On the meta device, so that no memory is taken and no random number is drawn.
        conv = PLAIN[self.transposed, ndim](
            self.in_channels,
            self.out_channels,
            tuple(kernel.shape[2:]),
            stride=self.stride,
            padding=padding,
            groups=self.groups,
            bias=False,
            padding_mode="zeros" if one_sided else self.padding_mode,
            device="meta",
            **more,
        )
        conv.weight = Parameter(kernel, requires_grad=any(p.requires_grad for p in parameters))
        if self.bias is not None:
            conv.bias = Parameter(gather(self.bias).detach().clone(), self.bias.requires_grad)
        if not one_sided:
            conv._reversed_padding_repeated_twice = list(self._reversed_padding_repeated_twice)
        return conv.train(self.training)

    def _refuse_other_forwards(self, unless_folded: bool = False) -> None:
        """Raises if ``forward`` may be more than the convolution with the dense kernel.

        With ``unless_folded`` a class may have its own ``forward`` if it has its own ``folded``.
        """
        package = __name__.partition(".")[0]

        def generation(name: str) -> int:
            return next(i for i, kind in enumerate(type(self).__mro__) if name in vars(kind))

        for name in ("forward", "_conv_forward"):
            patched = name in vars(self)
            definition = vars(self)[name] if patched else getattr(type(self), name)
            foreign = (getattr(definition, "__module__", None) or "").partition(".")[0] != package
            # A folded that is older than the forward does not know of it.
            declared = unless_folded and not patched and generation("folded") <= generation(name)
            if foreign and not declared:
                raise TypeError(
                    f"{type(self).__name__} has a {name} of its own, so that no plain convolution "
                    "is known to compute the same; for DCLS.fold its method folded can say what "
                    "does"
                )
        if self._forward_hooks or self._forward_pre_hooks:
            raise RuntimeError(
                f"{type(self).__name__} has forward hooks, which a plain convolution would not "
                "run; remove them first (torch.nn.utils.prune.remove, remove_weight_norm, ...)"
            )
