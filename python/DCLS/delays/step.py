"""One step at a time: what is on its way is a tensor that the caller holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS._checks import check_not_freed, check_tensors, integer
from DCLS._native.delay import WholeDelays
from DCLS._spec import SIGMA_VERSIONS
from DCLS.delays._layout import check_real, time_axis
from DCLS.delays._ways import Jumps, Lines, send
from DCLS.functional import construct_kernel
from DCLS.method import is_tracing, may_read
from DCLS.nn.base import _DclsModule
from DCLS.nn.frozen import KernelCache, may_keep

__all__ = ["Taps", "unroll"]


class Taps(NamedTuple):
    """What a step needs of a layer's parameters, see ``taps`` of the layer.

    Attributes:
        before: a matrix that the input is multiplied by first, or None.
        send: how values come to what is on its way.
        after: a matrix that what arrives is multiplied by, or None.
    """

    before: Tensor | None
    send: Any
    after: Tensor | None


class StepForm(_DclsModule):
    """A layer that can compute one step at a time."""

    causal: bool
    _step_cache: KernelCache[Taps] | None = None

    def initial_state(
        self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Returns the state before the first step: nothing is on its way.

        Args:
            batch: number of sequences.
            device: None (default) for that of the layer.
            dtype: None (default) for that of ``weight``.

        Returns:
            Zeros ``(max_delay, channels, batch)``: what arrives in so many steps. The channels are
            those that are delayed: the inputs of ``axonal`` sharing, else the outputs.

        Raises:
            TypeError: ``batch`` is no int.
            ValueError: ``batch`` is negative, or the layer is not causal.
        """
        return self._empty_state(integer("batch", batch, 0), (), device, dtype)

    def _empty_state(
        self, batch: int, space: Sequence[int], device: Any, dtype: torch.dtype | None
    ) -> Tensor:
        self._refuse_the_future()
        shape, like = self._state_shape(batch, space), self.weight
        return torch.zeros(shape, device=like.device if device is None else device,
                           dtype=like.dtype if dtype is None else dtype)  # fmt: skip

    def step(self, input: Tensor, state: Tensor, taps: Taps | None = None) -> tuple[Tensor, Tensor]:
        """Takes the input of one step, and returns the output of this step.

        Step by step it computes what ``forward`` does with the whole sequence, gradients included.
        The state is a new tensor each time, so that an old one can be used again. To cut the
        graph, as truncated backpropagation does, detach it.

        With whole delays, after ``DCLS.round_`` or in ``DCLS.integer_positions``, nothing is
        interpolated: each value goes to the one step where it arrives.

        Args:
            input: ``(batch, channels)``, for a convolution ``(batch, channels, *space)``.
            state: what ``initial_state`` or the last step returned.
            taps: what ``taps()`` returned since the parameters were last changed; it spares
                computing them at each step. None (default): where no gradient is wanted, a layer on
                a CPU, and on a GPU one that ``DCLS.freeze`` was given, keeps them and compares the
                parameters; any other one computes them.

        Returns:
            The output, ``(batch, channels)`` or ``(batch, channels, *space)``, and the state.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: a shape does not fit, or the layer is not causal.
        """
        return self._checked_step(input, state, taps, False)

    def step_(self, input: Tensor, state: Tensor, taps: Taps | None = None) -> Tensor:
        """Takes the input of one step as ``step`` does, and writes the new state over the old one.

        It saves new memory for the state at each step. There are no gradients: the old state would
        be needed for them.

        Args:
            input: as of ``step``.
            state: as of ``step``, overwritten.
            taps: as of ``step``.

        Returns:
            The output, as of ``step``.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: a shape does not fit, or the layer is not causal.
            RuntimeError: a gradient is wanted. Call it under ``torch.no_grad()``.
        """
        return self._checked_step(input, state, taps, True)[0]

    def _checked_step(
        self, input: Tensor, state: Tensor, taps: Taps | None, in_place: bool
    ) -> tuple[Tensor, Tensor]:
        self._refuse_the_future()
        check_tensors(input=input, state=state)
        wanted = in_place and torch.is_grad_enabled()
        if wanted and self._any_requires_grad([input, state, *self.parameters()]):
            raise RuntimeError("step_ has no gradients: call it under torch.no_grad(), or step")
        if taps is not None and not isinstance(taps, Taps):
            raise TypeError(f"taps must be what taps() returned, got {type(taps).__name__}")
        self._check_step(input, state)
        check_real(input)
        taps = self._taps_now() if taps is None else taps
        return self._advance(input, state, taps, in_place)

    def _advance(
        self, input: Tensor, state: Tensor, taps: Taps, in_place: bool
    ) -> tuple[Tensor, Tensor]:
        """Adds what the input sends; returns what arrives now, and the rest."""
        values = input if taps.before is None else F.linear(input, taps.before)
        arriving, state = send(taps.send, state, values.T, in_place)
        output = arriving.T if taps.after is None else F.linear(arriving.T, taps.after)
        bias = self.bias
        return output if bias is None else output + bias, state

    def taps(self) -> Taps:
        """Returns what ``step`` needs of the parameters, differentiable in them.

        Computed once for a sequence, it spares most of the time of a step. It holds until a
        parameter changes.

        Returns:
            A ``Taps``.

        Raises:
            ValueError: ``version`` needs ``SIG`` and there is none, or the layer is not causal.
        """
        self._refuse_the_future()
        self._check_memory()
        return self._make_taps()

    def _check_memory(self) -> None:
        for name in ("weight", "P", "SIG"):
            check_not_freed(name, getattr(self, name))

    def _make_taps(self) -> Taps:
        raise NotImplementedError

    def _state_shape(self, batch: int, space: Sequence[int] = ()) -> tuple[int, ...]:
        raise NotImplementedError

    def _check_step(self, input: Tensor, state: Tensor) -> None:
        """Raises unless the two fit the layer."""
        if input.ndim != 2 or input.shape[1] != self.in_channels:
            raise ValueError(
                f"input must have the shape (batch, {self.in_channels}), got {tuple(input.shape)}"
            )
        check_state(state, self._state_shape(input.shape[0]))

    def _refuse_the_future(self) -> None:
        if not self.causal:
            raise ValueError("causal must be True for steps: this layer sees later inputs")

    def _taps_now(self) -> Taps:
        """Returns the taps. Where nothing has changed, they are kept from the last step."""
        SIG = self.SIG if self.version in SIGMA_VERSIONS else None
        given = (self.weight, self.P, SIG, self._buffers.get("mask"))
        tensors = [t for t in given if t is not None]
        frozen = self._kernel_cache is not None
        read = all([t.is_cpu for t in tensors]) or frozen  # noqa: C419  # as torch.compile takes it
        plain = "DCK" not in self._modules or self._is_plain()  # axonal delays have no builder
        if self._trains(tensors) or not (plain and read and may_keep(tensors)):
            self._check_memory()
            return self._make_taps()
        if self._step_cache is None:
            self._step_cache = KernelCache()
        kind = tensors[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        form = self.stride, self.padding, self.groups
        settings = (self.version, self.dilated_kernel_size, dtype, *form)
        return self._step_cache(self._make_taps, settings, tensors)

    def _whole_delays(self) -> Tensor | None:
        """Returns the delays as int64, if the host can see that they are whole and stay so."""
        if self.version not in ("v0", "v1") or self._trains([self.P]):
            return None
        if is_tracing() or not (may_read([self.P]) or self._kernel_cache is not None):
            return None
        delays = self._last_position("steps") - self.P[0].detach()
        whole = delays.round()
        (size,) = self.dilated_kernel_size
        if not bool(((whole == delays) & (whole >= 0) & (whole < size)).all()):
            return None
        return whole.long()

    def _gain(self) -> float:
        """Returns the tap of an element on a grid point: 1, except for what normalising takes."""
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        kernel = construct_kernel(
            one, one.new_zeros(1, 1, 1, 1), dilated_kernel_size=1, version=self.version
        )
        return kernel.item()

    def _channel_taps(self, delays: Tensor | None, P: Tensor, SIG: Tensor | None) -> Any:
        """Returns how values are sent where each is of one channel, ``(channels, count)``."""
        (size,) = self.dilated_kernel_size
        channels = P.shape[1]
        if delays is not None:
            gain = self._gain()
            rows = torch.arange(channels, device=P.device)[:, None]
            weight = torch.full(delays.shape, gain, dtype=self.weight.dtype, device=P.device)
            values = torch.arange(delays.numel(), device=P.device).view_as(delays)
            whole = WholeDelays(delays, values, weight, delays.numel(), size)
            return Jumps((delays * channels + rows).flatten(), gain, whole)
        lines = construct_kernel(
            torch.ones_like(P[0]).unsqueeze(-1),
            *of_channels(P, SIG),
            dilated_kernel_size=size,
            version=self.version,
        )
        return Lines(lines.flip(-1).movedim(-1, 0))


def of_channels(P: Tensor, SIG: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gives rows ``(1, channels, count)`` the shape of kernels that read one channel each."""
    return P.unsqueeze(-1), None if SIG is None else SIG.unsqueeze(-1)


def check_state(state: Tensor, shape: tuple[int, ...]) -> None:
    """Raises unless it is a state of this shape."""
    if tuple(state.shape) != shape or not state.is_floating_point():
        raise ValueError(
            "state must be what initial_state or a step returned, of the shape that this input "
            f"asks for, {shape}, got {tuple(state.shape)} of {state.dtype}"
        )


Carry = tuple[Any, Tensor, Tensor]


def unroll(
    cell: Callable[[Tensor, Any], tuple[Tensor, Any]],
    layer: StepForm,
    input: Tensor,
    carry: Carry | None = None,
) -> tuple[Tensor, Carry]:
    """Runs a cell whose own outputs come back through a delay layer, as recurrent delays do.

    At each step the cell gets its input plus what arrives, and its output is sent: with a delay of
    0 it arrives at the next step, with a delay of d after d more.

    Args:
        cell: a function ``(input, hidden) -> (output, hidden)`` of one step, whose ``hidden`` is
            None at the first. Its output has the ``(batch, in_features)`` of the layer.
        layer: a ``DelayLinear`` or ``Delay`` from the cell's outputs to its inputs.
        input: ``(*, out_features)``, a sequence in the layer's ``layout``.
        carry: what an earlier part of the sequence returned; None (default) for a new one.

    Returns:
        The outputs of the cell in the same layout, and the carry: ``hidden``, what arrives at the
        next step, and the layer's state. Detach them for truncated backpropagation.

    Raises:
        TypeError: an argument has a wrong type, or ``cell`` returns no pair.
        ValueError: a shape does not fit, or the layer is not causal.

    Example:
        >>> layer = DelayLinear(32, 32, max_delay=20)
        >>> def cell(current, membrane):
        ...     membrane = current if membrane is None else 0.9 * membrane + current
        ...     return torch.tanh(membrane), membrane
        >>> outputs, carry = unroll(cell, layer, torch.randn(100, 8, 32))
    """
    if not callable(cell):
        raise TypeError(f"cell must be a function, got {type(cell).__name__}")
    layout: Any = getattr(layer, "layout", None)
    if not isinstance(layer, StepForm) or len(layout) != 3:
        raise TypeError(f"layer must be a DelayLinear or a Delay, got {type(layer).__name__}")
    check_tensors(input=input)
    if input.ndim != 3 or input.movedim(layout.index("N"), -1).shape[-1] != layer.out_channels:
        raise ValueError(
            f"input must have the axes {layout} with {layer.out_channels} channels, got "
            f"{tuple(input.shape)}"
        )
    taps = layer.taps()
    axis = time_axis(layout)
    batch = input.shape[layout.index("B")]
    if carry is None:
        nothing = input.new_zeros(batch, layer.out_channels)
        carry = None, nothing, layer.initial_state(batch)
    hidden, arriving, state = carry
    outputs = []
    for current in input.unbind(axis):
        returned = cell(current + arriving, hidden)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise TypeError(
                f"cell must return a pair (output, hidden), got {type(returned).__name__}"
            )
        output, hidden = returned
        outputs.append(output)
        arriving, state = layer.step(output, state, taps)
    return torch.stack(outputs, axis), (hidden, arriving, state)
