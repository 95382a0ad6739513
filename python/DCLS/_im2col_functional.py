"""Im2col's part of ``DCLS.functional``, which is where to import it from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from DCLS import _ops
from DCLS._ops._im2col_checks import check_input
from DCLS._padding import check_padding_name, same_padding
from DCLS._spec import check_version, is_int, resolve_sigma_min

__all__ = ["im2col", "im2col_conv"]

#: Bytes of columns held at a time, where the caller does not say. On a CPU a piece should stay in
#: the last cache until it has been multiplied, on a GPU it should fill the device.
DEFAULT_WORKSPACE = {"cpu": 8 << 20, "cuda": 256 << 20}


def _ints(name: str, value: int | Sequence[int], count: int) -> list[int]:
    """Returns one int for each axis; an int stands for equal ones."""
    values = [value] * count if not isinstance(value, Sequence) else list(value)
    for item in values:
        if not is_int(item):
            raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}")
    if len(values) != count:
        raise ValueError(
            f"{name} must be an int or have {count} entries for an input with {count} spatial "
            f"axes, got {value!r}"
        )
    return values


def _padding(
    padding: int | Sequence[int] | str, size: Sequence[int], stride: Sequence[int]
) -> list[int]:
    """Returns two ints for each axis: zeros before and behind it."""
    if not isinstance(padding, str):
        values = _ints("padding", padding, len(size))
        return [side for value in values for side in (value, value)]
    if check_padding_name(padding, stride) == "valid":
        return [0] * 2 * len(size)
    return [side for pair in same_padding(size) for side in pair]


def _arguments(
    tensors: dict[str, Tensor | None],
    dilated_kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    version: str,
    sigma_min: float | None,
) -> tuple[list[int], list[int], list[int], str, float]:
    """Checks what the operators cannot, and returns what they take behind the tensors."""
    sigma_min = resolve_sigma_min(check_version(version), sigma_min)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) and not (name in ("SIG", "bias") and tensor is None):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    sampled = tensors["input"]
    assert sampled is not None
    check_input(sampled)
    ndim = sampled.ndim - 2
    size = _ints("dilated_kernel_size", dilated_kernel_size, ndim)
    steps = _ints("stride", stride, ndim)
    return size, steps, _padding(padding, size, steps), version, sigma_min


def im2col(
    input: Tensor,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    version: str = "gauss",
    sigma_min: float | None = None,
) -> Tensor:
    """Samples the input at the real-valued offsets of kernel elements.

        columns[n, i, k, o] = sum_x phi_{i,k}(x) * input[n, i, o * stride - padding + x]

    where ``phi_{i,k}`` is an element of weight 1 on the grid of a kernel of
    ``dilated_kernel_size``, as ``construct_kernel`` defines it, and the input is zero outside
    of itself. A convolution is the product of its weights with these columns; ``im2col_conv``
    does both, piece by piece, without holding all columns.

    Differentiable in ``input``, ``P`` and ``SIG``, twice, and in forward mode (second and forward
    derivatives come from the plain torch reference and cost accordingly). Under autocast ``input``
    becomes autocast's dtype and ``P`` and ``SIG`` become float32.

    Args:
        input: ``(N, I, *spatial)`` with D = 1, 2 or 3 spatial axes. float32, float64, float16 or
            bfloat16; the last two are computed in float32.
        P: positions in grid steps, ``(D, I, K)``: of K elements for each channel. ``P[d]`` belongs
            to axis ``d``, 0 is the centre ``dilated_kernel_size[d] // 2``. Of input's dtype, or
            float32 for an input of 16 bits. The columns of a non-finite position are NaN.
        SIG: widths of the shape and dtype of ``P``; None if the version has no width.
        dilated_kernel_size: grid points on each axis, from 1 to ``2**24``; an int for all.
        stride: input steps between outputs, at least 1; an int for all axes.
        padding: zeros before and behind each axis, an int for all; ``same`` for as many outputs as
            inputs (stride 1 only), ``valid`` for none.
        version: one of ``DCLS.VERSIONS``.
        sigma_min: what is added to ``abs(SIG)``, finite and positive. None for the version's own.

    Returns:
        The columns, ``(N, I, K, *output_spatial)``, of input's dtype, contiguous, with as many
        outputs as a convolution with a kernel of ``dilated_kernel_size`` has.

    Raises:
        TypeError: a dtype or the type of an argument is not one that is listed here.
        ValueError: a shape, a device, a size, the version, or whether SIG is given does not fit.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    rest = _arguments(
        {"input": input, "P": P, "SIG": SIG},
        dilated_kernel_size,
        stride,
        padding,
        version,
        sigma_min,
    )
    columns: Tensor = _ops.im2col(input, P, SIG, *rest)
    return columns


def im2col_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    groups: int = 1,
    version: str = "gauss",
    sigma_min: float | None = None,
    workspace: int | None = None,
) -> Tensor:
    """Convolves with learnable spacings without ever building a kernel.

        output[n, o] = bias[o] + sum_{i,k} weight[o, i, k] * columns[n, i, k]

    with the columns of ``im2col``. It is the convolution with the kernel that
    ``construct_kernel`` builds from positions shared by all output channels, and for ``v0`` the
    deformable convolution (arXiv 1703.06211) whose offsets are constant over space.

    The columns are made, multiplied and forgotten piece by piece, and again in the backward pass:
    memory does not grow with K or ``dilated_kernel_size``.

    Differentiable in all tensors, twice, and in forward mode (second and forward derivatives come
    from the plain torch reference, which does build the kernel). Under autocast ``input``,
    ``weight`` and ``bias`` become autocast's dtype and ``P`` and ``SIG`` become float32.

    Args:
        input: ``(N, I, *spatial)`` with D = 1, 2 or 3 spatial axes. float32, float64, float16 or
            bfloat16.
        weight: ``(O, I // groups, K)`` of input's dtype.
        bias: ``(O,)`` of input's dtype, or None.
        P: positions, ``(D, I, K)``, as ``im2col`` takes them.
        SIG: widths, as ``im2col`` takes them.
        dilated_kernel_size: grid points on each axis; an int for all.
        stride: input steps between outputs, at least 1; an int for all axes.
        padding: zeros before and behind each axis, an int for all; or ``same`` or ``valid``.
        groups: number of groups, which divides I and O.
        version: one of ``DCLS.VERSIONS``.
        sigma_min: what is added to ``abs(SIG)``, finite and positive. None for the version's own.
        workspace: most bytes of columns held at a time, at least those of a group at one output.
            None for 8 MiB on a CPU and 256 MiB on a GPU.

    Returns:
        The output, ``(N, O, *output_spatial)``, of input's dtype, contiguous.

    Raises:
        TypeError: a dtype or the type of an argument is not one that is listed here.
        ValueError: a shape, a device, a size, the version, or whether SIG is given does not fit, or
            ``workspace`` is too small.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    size, steps, sides, version, sigma_min = _arguments(
        {"input": input, "weight": weight, "bias": bias, "P": P, "SIG": SIG},
        dilated_kernel_size,
        stride,
        padding,
        version,
        sigma_min,
    )
    if not is_int(groups):
        raise TypeError(f"groups must be an int, got {groups!r}")
    if workspace is None:
        workspace = DEFAULT_WORKSPACE.get(input.device.type, DEFAULT_WORKSPACE["cpu"])
    elif not is_int(workspace):
        raise TypeError(f"workspace must be an int or None, got {workspace!r}")
    output: Tensor = _ops.im2col_conv(
        input, weight, bias, P, SIG, size, steps, sides, version, sigma_min, groups, workspace
    )
    return output
