"""Tensors to addresses for im2col: whole problems, or pieces of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from DCLS import _backend
from DCLS._native.dense import _VERSION_INDEX, _address, _execution
from DCLS._native.pieces import Piece
from DCLS._spec import DTYPES

if TYPE_CHECKING:
    from DCLS import _C
else:
    _C = _backend.native

#: Into how many parts a batch's sums for the gradients of positions are cut at most. A fixed
#: number: with one that followed the threads, results would follow them, too.
_PARTS = 8


class Spec(NamedTuple):
    """What an im2col problem is, but for its tensors. All sequences have one int for each axis."""

    size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]  #: zeros before the input
    output_size: Sequence[int]
    version: str
    sigma_min: float


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which tensors of ``dtype`` are computed, which is that of positions."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def least_workspace(channels: int, elements: int, dtype: torch.dtype) -> int:
    """The bytes that ``im2col_conv`` needs for columns, of a group of so many ``channels``.

    These are the columns of a group at one output, or in the backward pass those of a channel in
    the dtype that is computed in.
    """
    return elements * max(channels * dtype.itemsize, compute_dtype(dtype).itemsize)


class Columns:
    """An im2col problem of checked arguments, whose columns are made piece by piece."""

    def __init__(self, input: Tensor, P: Tensor, SIG: Tensor | None, spec: Spec) -> None:
        self.input = input.contiguous()
        dtype = compute_dtype(input.dtype)
        self.P = P.to(dtype).contiguous()
        self.SIG = None if SIG is None else SIG.to(dtype).contiguous()
        self.spec = spec
        self.elements = P.shape[-1]
        self.where = _execution(input.device)

    @property
    def whole(self) -> Piece:
        """All of the columns."""
        batch, channels = self.input.shape[:2]
        return Piece(
            range(batch), range(channels), tuple(range(length) for length in self.spec.output_size)
        )

    def has_all_outputs(self, piece: Piece) -> bool:
        """Whether a piece has a part of the batch or channels, but no part of the outputs."""
        lengths = tuple(len(rows) for rows in piece.outputs)
        return lengths == tuple(self.spec.output_size)

    def _positions(self, channels: range) -> tuple[Tensor, Tensor | None]:
        """P and SIG of some channels."""
        chosen = slice(channels.start, channels.stop)
        return (
            self.P[:, chosen].contiguous(),
            None if self.SIG is None else self.SIG[:, chosen].contiguous(),
        )

    def _window(self, piece: Piece) -> range:
        """The points of the input's first axis that a piece with a part of the outputs reads."""
        rows, length = piece.outputs[0], self.input.shape[2]
        if len(rows) == self.spec.output_size[0]:
            return range(length)
        stride, padding = self.spec.stride[0], self.spec.padding[0]
        first = min(max(0, rows.start * stride - padding), length)
        end = (rows.stop - 1) * stride - padding + self.spec.size[0]
        return range(first, max(first, min(end, length)))

    def _problem(
        self, piece: Piece, P: Tensor, SIG: Tensor | None, window: range
    ) -> _C.Im2colProblem:
        spec, strides = self.spec, self.input.stride()
        start = [rows.start for rows in piece.outputs]
        padding = [p - o * s for p, o, s in zip(spec.padding, start, spec.stride, strict=True)]
        padding[0] += window.start
        offset = sum(
            at * stride
            for at, stride in zip(
                (piece.batch.start, piece.channels.start, window.start), strides, strict=False
            )
        )
        return _C.Im2colProblem(
            version=_VERSION_INDEX[spec.version],
            dtype=DTYPES[self.input.dtype],
            size=list(spec.size),
            stride=list(spec.stride),
            padding=padding,
            input_size=[len(window), *self.input.shape[3:]],
            output_size=[len(rows) for rows in piece.outputs],
            batch=len(piece.batch),
            channels=len(piece.channels),
            elements=self.elements,
            batch_stride=strides[0],
            channel_stride=strides[1],
            sigma_min=spec.sigma_min,
            input=_address(self.input) + offset * self.input.element_size(),
            position=_address(P),
            sigma=_address(SIG),
        )

    def _workspace(self, problem: _C.Im2colProblem) -> Tensor | None:
        """Device memory that a call needs for itself."""
        if not self.input.is_cuda:
            return None
        size = _C.im2col_workspace(problem, self.where)
        return torch.empty(size, dtype=torch.uint8, device=self.input.device)

    def make(self, piece: Piece, columns: Tensor) -> None:
        """Writes the columns of a piece to ``columns``, contiguous and of its shape."""
        P, SIG = self._positions(piece.channels)
        problem = self._problem(piece, P, SIG, self._window(piece))
        workspace = self._workspace(problem)
        _C.im2col(problem, _address(columns), _address(workspace), self.where)

    def new_sums(self, channels: range) -> Tensor:
        """Zeros to which ``backward`` adds for the gradients of P and SIG."""
        parts = max(1, min(_PARTS, self.input.shape[0]))
        shape = (parts, len(channels), self.elements, 1 + 2 * len(self.spec.size))
        return self.P.new_zeros(shape)

    def backward(
        self,
        piece: Piece,
        grad_columns: Tensor,
        grad_input: Tensor | None,
        sums: Tensor | None,
        with_sigma: bool,
    ) -> None:
        """Takes the gradients of a piece's columns.

        Args:
            piece: a part of the columns.
            grad_columns: the gradient of its columns, contiguous and of its shape.
            grad_input: of the input's shape, or None. A piece with all outputs overwrites its part,
                others add to it.
            sums: of ``new_sums`` for the piece's channels, or None; added to.
            with_sigma: whether the sums serve the gradient of SIG, too.
        """
        P, SIG = self._positions(piece.channels)
        window = self._window(piece)
        problem = self._problem(piece, P, SIG, window)
        workspace = self._workspace(problem)
        part = target = None
        if grad_input is not None:
            part = grad_input[
                piece.batch.start : piece.batch.stop,
                piece.channels.start : piece.channels.stop,
                window.start : window.stop,
            ]
            all_outputs = self.has_all_outputs(piece)
            target = part if all_outputs else part.new_empty(part.shape, dtype=self.input.dtype)
        _C.im2col_backward(
            problem,
            _address(grad_columns),
            _address(target),
            0 if target is None else target.stride(0),
            0 if target is None else target.stride(1),
            _address(sums),
            1 if sums is None else sums.shape[0],
            with_sigma,
            _address(workspace),
            self.where,
        )
        if part is not None and target is not None and target is not part:
            part += target

    def finish(
        self, channels: range, sums: Tensor, grad_P: Tensor | None, grad_SIG: Tensor | None
    ) -> None:
        """Writes the gradients of P and SIG of some channels to their place in ``grad_*``."""
        P, SIG = self._positions(channels)
        rows = tuple(range(length) for length in self.spec.output_size)
        problem = self._problem(Piece(range(0), channels, rows), P, SIG, range(0))
        workspace = self._workspace(problem)
        own_P = None if grad_P is None else torch.empty_like(P)
        own_SIG = None if grad_SIG is None else torch.empty_like(P)
        _C.im2col_finish(
            problem,
            _address(sums),
            sums.shape[0],
            _address(own_P),
            _address(own_SIG),
            _address(workspace),
            self.where,
        )
        for grad, own in ((grad_P, own_P), (grad_SIG, own_SIG)):
            if grad is not None and own is not None:
                grad[:, channels.start : channels.stop] = own


def im2col(input: Tensor, P: Tensor, SIG: Tensor | None, spec: Spec) -> Tensor:
    """The columns of checked arguments, ``(N, I, K, *output_size)``."""
    columns = Columns(input, P, SIG, spec)
    result = input.new_empty(columns.whole.shape(columns.elements))
    columns.make(columns.whole, result)
    return result


def im2col_backward(
    grad_columns: Tensor,
    input: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    spec: Spec,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, P and SIG of checked arguments; None where the mask is False."""
    columns = Columns(input, P, SIG, spec)
    whole = columns.whole
    # Zeros: where there are no outputs or no elements nothing is written.
    grad_input = torch.zeros_like(columns.input) if output_mask[0] else None
    grad_P = torch.empty_like(P, memory_format=torch.contiguous_format) if output_mask[1] else None
    grad_SIG = None
    if output_mask[2] and SIG is not None:
        grad_SIG = torch.empty_like(SIG, memory_format=torch.contiguous_format)
    sums = None
    if grad_P is not None or grad_SIG is not None:
        sums = columns.new_sums(whole.channels)
    columns.backward(whole, grad_columns.contiguous(), grad_input, sums, grad_SIG is not None)
    if sums is not None:
        columns.finish(whole.channels, sums, grad_P, grad_SIG)
    return grad_input, grad_P, grad_SIG
