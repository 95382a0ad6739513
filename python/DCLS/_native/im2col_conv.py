"""The im2col convolution: columns made and multiplied piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from DCLS._native.im2col import Columns, Spec, compute_dtype
from DCLS._native.pieces import Piece, cut


def _pieces(
    columns: Columns, lanes: int, lane_channels: int, workspace: int, lanes_in_block: int
) -> Iterator[tuple[range, list[Piece]]]:
    """Yields channels, and the pieces that have them. Lanes: see ``cut``."""
    lane_bytes = lane_channels * columns.elements * columns.input.element_size()
    batches, of_lanes, outputs = cut(
        columns.input.shape[0],
        lanes,
        columns.spec.output_size,
        lane_bytes,
        workspace,
        lanes_in_block,
    )
    for chosen in of_lanes:
        channels = range(chosen.start * lane_channels, chosen.stop * lane_channels)
        yield channels, [Piece(batch, channels, rows) for batch in batches for rows in outputs]


def _flat(piece: Piece, output_size: Sequence[int]) -> slice:
    """The outputs of a piece, which ``cut`` leaves next to each other."""
    first = 0
    for rows, length in zip(piece.outputs, output_size, strict=True):
        first = first * length + rows.start
    return slice(first, first + math.prod(len(rows) for rows in piece.outputs))


def _buffer(columns: Columns, pieces: Sequence[tuple[range, list[Piece]]]) -> Tensor:
    """Memory for the columns of the largest piece."""
    sizes = [math.prod(piece.shape(columns.elements)) for _, every in pieces for piece in every]
    return columns.input.new_empty(max(sizes, default=0))


def _multiply(matrices: Tensor, right: Tensor, out: Tensor) -> None:
    """Writes ``matrices @ right``, ``(G, I, J) @ (N, G, J, L)``, to ``out``, ``(N, G, I, L)``.

    One call for all images, since a GPU waits for each, where that takes no more memory than the
    columns: each image needs a copy of the matrices unless there is one group.
    """
    images, groups = out.shape[:2]
    if images > 1 and (groups == 1 or matrices.numel() <= max(right[0].numel(), out[0].numel())):
        copies = matrices.expand(images, *matrices.shape).flatten(0, 1)
        torch.bmm(copies, right.flatten(0, 1), out=out.view(-1, *out.shape[2:]))
        return
    for n in range(images):
        torch.bmm(matrices, right[n], out=out[n])


def _add_products(sums: Tensor, grad: Tensor, columns: Tensor) -> None:
    """Adds ``grad @ columns.mT``, ``(N, G, I, L) @ (N, G, L, J)``, of all images to ``sums``.

    One call under the same condition as for ``_multiply``: each image has sums of its own.
    """
    images = grad.shape[0]
    if images > 1 and sums.numel() <= columns[0].numel():
        products = torch.bmm(grad.flatten(0, 1), columns.flatten(0, 1).mT)
        sums += products.view(images, *sums.shape).sum(0)
        return
    for n in range(images):
        sums.baddbmm_(grad[n], columns[n].mT)


def im2col_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    P: Tensor,
    SIG: Tensor | None,
    spec: Spec,
    groups: int,
    workspace: int,
) -> Tensor:
    """The convolution of checked arguments; its columns take at most ``workspace`` bytes."""
    columns = Columns(input, P, SIG, spec)
    batch, channels = input.shape[:2]
    out_channels, per_group, elements = weight.shape
    output = input.new_empty((batch, out_channels, *spec.output_size))
    if output.numel() == 0:
        return output
    if channels == 0 or elements == 0:
        output.zero_()
        return output if bias is None else output.add_(bias.reshape(-1, *[1] * len(spec.size)))
    matrices = weight.reshape(groups, out_channels // groups, per_group * elements)
    pieces = list(_pieces(columns, groups, per_group, workspace, 1))
    buffer = _buffer(columns, pieces)
    out = output.view(batch, groups, out_channels // groups, -1)
    biases = None if bias is None else bias.reshape(groups, -1, 1)
    for chosen, every in pieces:
        of_groups = slice(chosen.start // per_group, chosen.stop // per_group)
        for piece in every:
            shape = piece.shape(elements)
            made = buffer[: math.prod(shape)].view(shape)
            columns.make(piece, made)
            made = made.view(len(piece.batch), -1, per_group * elements, math.prod(shape[3:]))
            part = out[piece.batch.start : piece.batch.stop, of_groups]
            part = part[..., _flat(piece, spec.output_size)]
            _multiply(matrices[of_groups], made, part)
            if biases is not None:
                part += biases[of_groups]
    return output


def im2col_conv_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    spec: Spec,
    groups: int,
    workspace: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight, P and SIG of checked arguments; None where the mask is False."""
    # All in at least float32: the gradients of columns may pass the range of float16 where those
    # that they add up to do not, and their rounding would remain in sums of several pieces.
    dtype = compute_dtype(input.dtype)
    columns = Columns(input.to(dtype), P, SIG, spec)
    batch, channels = input.shape[:2]
    out_channels, per_group, elements = weight.shape
    matrices = weight.to(dtype).reshape(groups, out_channels // groups, per_group * elements)
    pieces = list(_pieces(columns, channels, 1, workspace, per_group)) if channels else []
    grad_input = torch.zeros_like(columns.input) if output_mask[0] else None
    # Contiguous, whatever the layout of the weight.
    grad_weight = matrices.new_zeros(matrices.shape) if output_mask[1] else None
    grad_P = torch.zeros_like(columns.P) if output_mask[2] else None
    with_sigma = output_mask[3] and columns.SIG is not None
    grad_SIG = torch.zeros_like(columns.P) if with_sigma else None
    for_columns = grad_input is not None or grad_P is not None or grad_SIG is not None
    if batch and out_channels and elements:
        grad = grad_output.reshape(batch, groups, out_channels // groups, -1)
        buffer = _buffer(columns, pieces)
        for chosen, every in pieces:
            of_groups = slice(chosen.start // per_group, -(-chosen.stop // per_group))
            rows = slice(
                (chosen.start - of_groups.start * per_group) * elements,
                (chosen.stop - (of_groups.stop - 1) * per_group) * elements,
            )
            sums = None
            if grad_P is not None or grad_SIG is not None:
                sums = columns.new_sums(chosen)
            for piece in every:
                shape = piece.shape(elements)
                made = buffer[: math.prod(shape)].view(shape)
                matrix = made.view(
                    len(piece.batch),
                    of_groups.stop - of_groups.start,
                    rows.stop - rows.start,
                    math.prod(shape[3:]),
                )
                part = grad[piece.batch.start : piece.batch.stop, of_groups]
                part = part[..., _flat(piece, spec.output_size)].to(dtype)
                if grad_weight is not None:
                    columns.make(piece, made)
                    _add_products(grad_weight[of_groups, :, rows], part, matrix)
                if for_columns:
                    _multiply(matrices[of_groups, :, rows].mT, part, matrix)
                    columns.backward(piece, made, grad_input, sums, grad_SIG is not None)
            if sums is not None:
                columns.finish(chosen, sums, grad_P, grad_SIG)
    return (
        None if grad_input is None else grad_input.to(input.dtype),
        None if grad_weight is None else grad_weight.to(weight.dtype).view(weight.shape),
        None if grad_P is None else grad_P.to(P.dtype),
        None if grad_SIG is None else grad_SIG.to(P.dtype),
    )
