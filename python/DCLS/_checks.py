"""Checks of arguments. Each error names the argument, what it takes and what it got.

First the values that layers and functions take, from single numbers to padding; then tensors. What
only one operator takes is checked beside that operator.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Final, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from DCLS._spec import DTYPES, SIGMA_MIN, SIGMA_VERSIONS, VERSIONS
from DCLS._types import PaddingMode

PADDING_MODES: Final[tuple[str, ...]] = get_args(PaddingMode)

#: Most grid points on one axis of a kernel: up to it every index is exact in float32.
MAX_AXIS_SIZE: Final = 1 << 24

#: Most of any other number: what every way to convolve takes.
MAX_NUMBER: Final = 1 << 30

_AT_LEAST = {0: "a non-negative int", 1: "a positive int"}


# ----------------------------------------------------------------------------------------- numbers


def shown(value: object) -> str:
    """Returns ``repr(value)``, or what Python calls an int that has too many digits for it."""
    try:
        return repr(value)
    except ValueError:
        return "an int of thousands of digits"


def is_int(value: object) -> bool:
    """Whether it is an int, perhaps one of numpy or, while torch compiles, a symbol; no bool."""
    # In this order: of a symbol torch.compile knows the type, but not whether it has __index__.
    if isinstance(value, Tensor):  # torch takes one without axes
        return value.ndim == 0 and not value.is_floating_point() and not value.is_complex()
    # Arrays have __index__ whatever they hold, as the type int itself has.
    return not isinstance(value, (bool, type)) and (
        isinstance(value, int) or (hasattr(value, "__index__") and not hasattr(value, "__len__"))
    )


def check_int(name: str, value: object, or_none: bool = False) -> None:
    """Raises unless ``value`` is an int, in the sense of ``is_int``, or an allowed None."""
    if not is_int(value) and not (or_none and value is None):
        raise TypeError(f"{name} must be an int{' or None' if or_none else ''}, got {value!r}")
    check_range(name, value)


def check_range(name: str, value: object) -> None:
    """Raises if ``value`` is an int that torch cannot hold."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{name} must fit 64 bits, got {shown(value)}")


def integer(
    name: str, value: object, minimum: int, maximum: int = MAX_NUMBER, whole_floats: bool = False
) -> int:
    """Returns ``value`` as an int from ``minimum``, which is 0 or 1, to ``maximum``.

    With ``whole_floats`` a real number that is whole counts as an int.
    """
    # bool is refused although it is an int: it is nearly always an argument in the wrong place.
    if isinstance(value, bool):
        raise TypeError(f"{name} must be {_AT_LEAST[minimum]}, got the bool {value}")
    if whole_floats and isinstance(value, Real) and getattr(value, "is_integer", bool)():
        value = int(value)  # type: ignore[call-overload]  # mypy's Real has no __int__
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} must be {_AT_LEAST[minimum]}, got {value!r} of type {type(value).__name__}"
        ) from None
    if number < minimum:
        raise ValueError(f"{name} must be {_AT_LEAST[minimum]}, got {shown(number)}")
    if number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {shown(number)}")
    return number


def flag(name: str, value: object) -> bool:
    """Returns ``value`` if it is a bool or one of numpy; 0 and None are False, 1 is True."""
    if isinstance(value, bool):
        return value
    of_numpy = getattr(value, "dtype", None) == "bool" and getattr(value, "shape", None) == ()
    if value is None or of_numpy or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {shown(value)} of type {type(value).__name__}")


def channels(in_channels: object, out_channels: object, groups: object) -> tuple[int, int, int]:
    """Returns the three as ints, the third of which divides the other two."""
    checked = (
        integer("in_channels", in_channels, 0),
        integer("out_channels", out_channels, 0),
        integer("groups", groups, 1),
    )
    for name, number in zip(("in_channels", "out_channels"), checked, strict=False):
        if number % checked[2] != 0:
            raise ValueError(f"{name} must be divisible by groups={checked[2]}, got {number}")
    return checked


def resolve_sigma_min(version: str, sigma_min: float | None) -> float:
    """Returns the smallest width of an element: ``sigma_min``, or the version's own for None.

    Raises:
        TypeError: ``sigma_min`` is not a number.
        ValueError: ``sigma_min`` is not finite and positive, or ``version`` has no width.
    """
    if sigma_min is None:
        return SIGMA_MIN[version]
    if isinstance(sigma_min, bool) or not isinstance(sigma_min, Real):
        raise TypeError(f"sigma_min must be a float or None, got {type(sigma_min).__name__}")
    if version not in SIGMA_VERSIONS:
        raise ValueError(f"sigma_min must be None for version {version!r}, got {sigma_min}")
    try:
        number = float(sigma_min)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"sigma_min must be finite and positive, got {shown(sigma_min)}")
    return number


# ------------------------------------------------------------------------------- numbers per axis


def integers(
    name: str,
    value: object,
    count: int | None,
    minimum: int,
    maximum: int = MAX_NUMBER,
    whole_floats: bool = False,
) -> tuple[int, ...]:
    """Returns what a constructor takes for each axis: ``count`` ints of at least ``minimum``.

    One int stands for ``count`` equal ones. With ``count`` None, ``value`` is a sequence of one to
    three ints. The other arguments are those of ``integer``.
    """
    limits = (minimum, maximum, whole_floats)
    wanted = f"a sequence of {'1 to 3' if count is None else count} ints"
    if count is not None:
        wanted = f"an int or {wanted}"
    alone = isinstance(value, (str, bytes, Tensor)) or getattr(value, "ndim", 1) == 0
    if isinstance(value, Iterable) and not alone:
        numbers = tuple(integer(f"{name}[{i}]", item, *limits) for i, item in enumerate(value))
        if len(numbers) not in ((1, 2, 3) if count is None else (count,)):
            raise ValueError(f"{name} must be {wanted}, got {numbers}")
        return numbers
    if count is None or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    return (integer(name, value, *limits),) * count


def grid_size(value: object, count: int | None) -> tuple[int, ...]:
    """Returns ``dilated_kernel_size`` of a constructor, as ``integers`` takes it.

    Whole floats are taken, too, as in DCLS 0.1.1: sizes such as ``250 // 10.`` come from divisions.
    """
    return integers("dilated_kernel_size", value, count, 1, MAX_AXIS_SIZE, whole_floats=True)


def ints(
    name: str, value: object, count: int | None = None, *, one_for_all: bool = False
) -> list[int]:
    """Returns what a function takes for each axis, symbols of a compiler included.

    The operators check the ranges.

    Args:
        name: the argument.
        value: an int, which stands for ``count`` equal ones, or a sequence of ints.
        count: number of axes; None for as many as ``value`` has.
        one_for_all: whether a sequence of one int stands for ``count`` equal ones, too.
    """
    if is_int(value):
        check_range(name, value)
        return [value] * (1 if count is None else count)  # type: ignore[list-item]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}")
    for item in value:
        if not is_int(item):
            raise TypeError(f"{name} must hold ints, got {tuple(value)!r}")
        check_range(name, item)
    if count is None or len(value) == count:
        return list(value)
    if one_for_all and len(value) == 1:
        return list(value) * count
    wanted = f"have 1 or {count}" if one_for_all else f"be an int or have {count}"
    raise ValueError(f"{name} must {wanted} entries, one for each axis, got {tuple(value)!r}")


def padding(
    value: object, stride: Sequence[int]
) -> tuple[int, ...] | tuple[tuple[int, int], ...] | str:
    """Returns ``padding`` of a layer: an entry for each item of ``stride``, or a name.

    Ints, or pairs where the two sides of an axis differ.
    """
    if isinstance(value, str):
        return padding_name(value, stride, ("causal",))
    count = len(stride)
    items = value if isinstance(value, Sequence) else ()
    if count == 1 and len(items) == 2 and not any(isinstance(item, Sequence) for item in items):
        value = items = (items,)  # the pair of the one axis
    if not any(isinstance(item, Sequence) for item in items):
        return integers("padding", value, count, 0)
    if len(items) != count:
        raise ValueError(
            f"padding must be an int or a pair (before, behind) for each of {count} axes, got "
            f"{value!r}"
        )
    sides = [integers(f"padding[{axis}]", item, 2, 0) for axis, item in enumerate(items)]
    before, behind = zip(*sides, strict=True)
    return before if before == behind else tuple((low, high) for low, high in sides)


def padding_name(value: str, stride: Sequence[int], more: tuple[str, ...] = ()) -> str:
    """Returns ``value`` if it is ``valid`` or in ``more``, or is ``same`` and each stride is 1."""
    names = ("same", "valid", *more)
    if value not in names:
        listed = ", ".join(map(repr, names))
        raise ValueError(f"padding must be {listed}, an int or a sequence, got {value!r}")
    if value == "same" and any(step != 1 for step in stride):
        raise ValueError(f"padding='same' takes a stride of 1 only, got stride={tuple(stride)}")
    return value


def padding_sides(
    padding: int | Sequence[Any] | str,
    span: Sequence[int],
    stride: Sequence[int],
    *,
    one_for_all: bool = False,
    time_axis: int | None = None,
) -> list[tuple[int, int]]:
    """Returns the zeros before and behind each axis.

    Args:
        padding: as a function takes it, in numbers as ``ints`` or by name; or as ``padding``
            returns it.
        span: points of the input that the kernel spans on each axis. For ``same`` and an even
            number of points the longer side is the one behind.
        stride: one for each axis.
        one_for_all: as ``ints`` takes it.
        time_axis: the axis that ``causal`` pads before only; the others as ``same`` does. None
            where ``causal`` is not taken.
    """
    if not isinstance(padding, str):
        if isinstance(padding, tuple) and padding and isinstance(padding[0], tuple):
            return list(padding)
        numbers = ints("padding", padding, len(stride), one_for_all=one_for_all)
        return [(number, number) for number in numbers]
    if padding_name(padding, stride, () if time_axis is None else ("causal",)) == "valid":
        return [(0, 0)] * len(stride)
    sides = [((points - 1) // 2, points // 2) for points in span]
    if padding == "causal" and time_axis is not None:
        sides[time_axis] = (span[time_axis] - 1, 0)
    return sides


# ----------------------------------------------------------------------------------------- choices


def choice(name: str, value: object, accepted: Sequence[str]) -> str:
    """Returns ``value`` if it is one of the names that are ``accepted``."""
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be a str out of {', '.join(accepted)}, got {type(value).__name__}"
        )
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
    return value


def check_version(version: object) -> str:
    """Returns ``version`` if it names an interpolation."""
    return choice("version", version, VERSIONS)


def parameter_dtype(value: object) -> torch.dtype | None:
    """Returns ``value`` if it is None or a dtype that parameters may have."""
    if value is None:
        return None
    if not isinstance(value, torch.dtype) or value not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"dtype must be None or one of {names}, got {shown(value)}")
    return value


def check_device_name(value: Any) -> None:
    """Raises unless ``value`` is None or what torch takes for a device."""
    try:
        if value is not None:
            torch.device(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise type(error)(f"device must be None or name one, got {shown(value)}: {error}") from None


# ----------------------------------------------------------------------------------------- tensors


def check_tensors(or_none: bool = False, **tensors: object) -> None:
    """Raises unless all are tensors, or an allowed None."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) and not (or_none and tensor is None):
            takes = "a Tensor or None" if or_none else "a Tensor"
            raise TypeError(f"{name} must be {takes}, got {type(tensor).__name__}")


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raises unless the native library computes the dtype of ``tensor``."""
    if tensor.dtype not in DTYPES:
        takes = ", ".join(sorted(str(dtype) for dtype in DTYPES))
        raise TypeError(f"{name} must have a dtype out of {takes}, got {tensor.dtype}")


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raises unless both tensors are on one device."""
    if tensor.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {like_name}, {like.device}, got {tensor.device}"
        )


def check_like(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raises unless both tensors have one dtype and are on one device."""
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{name} must have the dtype of {like_name}, {like.dtype}, got {tensor.dtype}"
        )
    check_device(name, tensor, like_name, like)


def check_widths(SIG: object, version: str, sigma_min: float) -> None:
    """Raises unless there are widths just where ``version``, which exists, has some."""
    has_sigma = version in SIGMA_VERSIONS
    if has_sigma and SIG is None:
        raise ValueError(f"SIG must be given for version {version!r}, got None")
    if not has_sigma and SIG is not None:
        raise ValueError(f"SIG must be None for version {version!r}, which has no widths")
    if has_sigma:
        resolve_sigma_min(version, sigma_min)


#: Dispatch keys of tensors whose memory holds their elements, on either device. With any other
#: key (functorch's, lazy negation, zeros without memory) the dispatcher has to see to the tensor.
with torch.inference_mode(False):  # whatever surrounds the import
    _PLAIN_KEYS = torch._C._dispatch_keys(torch.empty(0, device="cpu")).raw_repr()
for _key in (torch._C.DispatchKey.CUDA, torch._C.DispatchKey.AutocastCUDA):
    _PLAIN_KEYS |= torch._C.DispatchKeySet(_key).raw_repr()


def is_plain(tensor: Tensor) -> bool:
    """Whether nothing stands between the caller and the memory of ``tensor``."""
    return not torch._C._dispatch_keys(tensor).raw_repr() & ~_PLAIN_KEYS


def check_dense(name: str, tensor: Tensor) -> None:
    """Raises unless ``tensor`` has strides and plain elements."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else "of layout"
        layout = f" {tensor.layout}" if kind == "of layout" else ""
        raise TypeError(f"{name} must be a dense tensor, got one that is {kind}{layout}")


def check_memory(name: str, tensor: Tensor) -> None:
    """Raises unless the elements of ``tensor`` lie in memory, where its strides say."""
    check_dense(name, tensor)
    if tensor.data_ptr() == 0 and tensor.numel() != 0:
        raise ValueError(
            f"{name} must have memory, got a tensor of shape {tuple(tensor.shape)} without: its "
            "storage was freed, or its class keeps the elements elsewhere"
        )


def check_not_freed(name: str, tensor: Tensor | None) -> None:
    """Raises if ``tensor`` is a plain one whose storage was freed.

    Some functions of torch end the process there: ``pad`` with a mode other than zeros does.
    """
    if tensor is None or type(tensor) not in (Tensor, Parameter) or torch.compiler.is_compiling():
        return
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # what torch.func wraps has no memory of its own
        return
    if address == 0 and is_plain(tensor):
        check_memory(name, tensor)
