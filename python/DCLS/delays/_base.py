"""What all delay layers share: the layout, where delays start, and what they fold to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor

from DCLS import _checks
from DCLS._spec import SIGMA_VERSIONS
from DCLS.delays._layout import check_layout, check_sequence, from_time_last, in_layout
from DCLS.delays._layout import to_time_last as time_last
from DCLS.delays.step import StepForm
from DCLS.method import Choice
from DCLS.nn.axes import as_floats
from DCLS.nn.by_axis import _fitting
from DCLS.nn.initial import check_init_widths, off_kinks

if TYPE_CHECKING:
    from torch.nn.modules.conv import _ConvNd

#: Where delays start: drawn evenly, a number of steps, one for each, or a function that fills them.
InitDelays: TypeAlias = Literal["uniform"] | float | Tensor | Callable[[Tensor, int], Tensor | None]


def check_init_delays(name: str, value: Any, max_delay: int) -> InitDelays:
    """Returns ``value`` if delays can start from it."""
    if callable(value) and not isinstance(value, Tensor):
        return value  # type: ignore[no-any-return]
    if isinstance(value, str) and value == "uniform":
        return "uniform"
    if isinstance(value, Tensor) and value.is_floating_point() | (value.dtype in _INTS):
        if value.is_meta:
            return value
        inside = bool(((value >= 0) & (value <= max_delay)).all())
    elif isinstance(value, Real) and not isinstance(value, bool):
        inside = 0 <= float(value) <= max_delay
    else:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(
            f"{name} must be 'uniform', a number, a Tensor of real numbers or a function, got "
            f"{_checks.shown(value)}"
        )
    if not inside:
        raise ValueError(f"{name} must be from 0 to max_delay={max_delay}, got {value}")
    # Without its graph, which could not be copied with the layer.
    if isinstance(value, Tensor):
        return value.detach()
    return value  # type: ignore[no-any-return]


_INTS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class _DelayLayer(StepForm):
    """A layer whose one learnable axis is time."""

    #: Number of axes of space, and the name that the starting delays have as an argument.
    _space = 0
    _delays_name = "init_delays"

    layout: str
    causal: bool
    init_delays: InitDelays
    #: Whether the delays are trained.
    learn_delay = True

    def _set_up_delays(
        self, max_delay: object, count: object, layout: object, causal: object, init_delays: Any,
        init_width: Any, version: Any, **given: Any,
    ) -> None:  # fmt: skip
        """Checks the arguments that all delay layers have, and makes the layer."""
        longest = _checks.integer("max_delay", max_delay, 0, _checks.MAX_AXIS_SIZE - 1)
        elements = _checks.integer("count", count, 1)
        if longest == 0 and elements > 1:
            raise ValueError(f"count must be 1 where max_delay is 0, got {elements}")
        self.layout = check_layout(layout, self._space)
        self.causal = _checks.flag("causal", causal)
        check_init_widths(init_width, _checks.check_version(version), "init_width")
        self.init_delays = check_init_delays(self._delays_name, init_delays, longest)
        padding = "causal" if self.causal else "same"
        given = {"groups": 1, "stride": 1, "padding": padding, "padding_mode": "zeros", **given}
        self._set_up(
            {
                "kernel_count": elements,
                "dilated_kernel_size": longest + 1,
                "version": version,
                "init_widths": init_width,
                **given,
            }
        )

    @property
    def max_delay(self) -> int:
        """The longest delay in steps: one less than the points of the kernel."""
        (size,) = self.dilated_kernel_size
        return size - 1

    @property
    def count(self) -> int:
        """Number of delays of a connection."""
        return self.kernel_count

    def _draw_rows(self, P: Tensor) -> None:
        ((low, last),) = self._position_limits()
        how = self.init_delays
        if isinstance(how, str):
            P.uniform_(low, last)
            return
        if callable(how) and not isinstance(how, Tensor):
            filled = torch.zeros_like(P[0])
            returned = how(filled, self.max_delay)
            delays = filled if returned is None else returned
            if not isinstance(delays, Tensor) or delays.shape != filled.shape:
                got = tuple(delays.shape) if isinstance(delays, Tensor) else type(delays).__name__
                raise ValueError(
                    f"{self._delays_name} must fill its first argument or return a Tensor of the "
                    f"shape {tuple(filled.shape)}, got {got}"
                )
            if not delays.is_meta and not delays.isfinite().all():
                raise ValueError(f"{self._delays_name} must give finite delays")
            P[0].copy_(last - delays.clamp(0, self.max_delay))
            return
        delays = torch.as_tensor(how, dtype=P.dtype, device=P.device)
        positions = last - self._start(delays, P.shape[1:])
        if self.learn_delay:  # else they would never move
            positions = off_kinks(positions, self.dilated_kernel_size, self.version)
        P[0].copy_(positions)

    def _used_rows(
        self, P: Tensor | None = None, SIG: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the layer's rows, or the given ones, as the version takes them."""
        P, SIG = (self.P, self.SIG) if P is None else (P, SIG)
        P = as_floats(P, self.weight.dtype)
        if SIG is None or self.version not in SIGMA_VERSIONS:
            return P, None
        return P, as_floats(SIG, P.dtype)

    def _start(self, delays: Tensor, shape: torch.Size) -> Tensor:
        """Gives delays at the start the shape of a row of ``P``."""
        return _fitting(self._delays_name, delays, shape)

    def forward(self, input: Tensor) -> Tensor:
        """Delays a whole sequence.

        Args:
            input: as ``layout`` says, or without its batch.

        Returns:
            The output in the same layout, with as many steps.

        Raises:
            TypeError: ``input`` is no tensor, or the dtypes do not fit.
            ValueError: the axes or the channels of ``input`` do not fit.
            RuntimeError: the build or the machine cannot serve the tensors' GPU.
        """
        check_sequence(input, self.layout, self.in_channels)
        output = self._conv_forward(*self._arguments(time_last(input, self.layout)))
        return from_time_last(output, self.layout)

    def explain(self, input: Tensor) -> Choice:
        """Says which way the layer would compute ``input`` now, and why, as ``Dcls1d`` does."""
        check_sequence(input, self.layout, self.in_channels)
        return super().explain(time_last(input, self.layout))

    def to_conv(self) -> Any:
        """Returns a module without DCLS that computes the same, as ``DCLS.fold`` does.

        A causal layer becomes a padding and a convolution. Around them, unless time is the last
        axis of ``layout``, a recorded graph of torch moves the axes.

        Raises:
            TypeError: a subclass has its own ``forward``, see ``folded``.
            RuntimeError: the layer has forward hooks, which a plain layer would not run.
            ValueError: ``version`` needs ``SIG`` and there is none.
        """
        return super().to_conv()

    def _with_padding(self, conv: _ConvNd) -> Any:
        return in_layout(super()._with_padding(conv), self.layout).train(self.training)

    @classmethod
    def from_conv(cls, conv: object, **_: Any) -> NoReturn:
        """Not for delay layers: ``DCLS.Dcls1d.from_conv`` takes the kernel of a convolution."""
        raise TypeError(
            f"{cls.__name__} cannot be made from a {type(conv).__name__}: use from_conv of "
            "DCLS.Dcls1d, Dcls2_1d or Dcls3_1d, with padding='causal'"
        )

    def _describe_delays(self) -> Iterator[str]:
        """Yields what ``extra_repr`` says of all delay layers."""
        yield f"max_delay={self.max_delay}"
        if self.count != 1:
            yield f"count={self.count}"
        yield f"version={self.version}"
        yield f"layout={self.layout}"
        if not self.causal:
            yield "causal=False"
        if self.bias is not None:
            yield "bias=True"
        if self.method != "auto":
            yield f"method={self.method}"


def positive(name: str, value: object) -> int:
    """Returns ``value`` if it is an int of at least 1."""
    return _checks.integer(name, value, 1)
