"""Checks of constructor arguments. Each error names the argument, what it got and what it takes."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch

from DCLS._padding import check_padding_name

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

#: Dtypes that the parameters may have.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_AT_LEAST = {0: "a non-negative int", 1: "a positive int"}


def integer(name: str, value: object, minimum: int) -> int:
    """Returns ``value`` as an int of at least ``minimum``, which is 0 or 1."""
    # bool is refused although it is an int: it is nearly always an argument in the wrong place.
    if isinstance(value, bool):
        raise TypeError(f"{name} must be {_AT_LEAST[minimum]}, got the bool {value}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} must be {_AT_LEAST[minimum]}, got {value!r} of type {type(value).__name__}"
        ) from None
    if number < minimum:
        raise ValueError(f"{name} must be {_AT_LEAST[minimum]}, got {number}")
    return number


def integers(name: str, value: object, count: int | None, minimum: int) -> tuple[int, ...]:
    """Returns ``value`` as a tuple of ``count`` ints of at least ``minimum``, which is 0 or 1.

    One int stands for ``count`` equal ones. With ``count`` None, ``value`` is a sequence of one to
    three ints.
    """
    wanted = f"a sequence of {'1 to 3' if count is None else count} ints"
    if count is not None:
        wanted = f"an int or {wanted}"
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, torch.Tensor)):
        numbers = tuple(integer(f"{name}[{i}]", item, minimum) for i, item in enumerate(value))
        if len(numbers) not in ((1, 2, 3) if count is None else (count,)):
            raise ValueError(f"{name} must be {wanted}, got {numbers}")
        return numbers
    if count is None or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    return (integer(name, value, minimum),) * count


def flag(name: str, value: object) -> bool:
    """Returns ``value`` if it is a bool or one of numpy; 0 and None are False, 1 is True."""
    of_numpy = getattr(value, "dtype", None) == "bool" and getattr(value, "shape", None) == ()
    if value is None or of_numpy or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {value!r} of type {type(value).__name__}")


def padding(value: object, stride: tuple[int, ...]) -> tuple[int, ...] | str:
    """Returns ``padding`` as a tuple with one int for each item of ``stride``, or as a name."""
    if not isinstance(value, str):
        return integers("padding", value, len(stride), 0)
    return check_padding_name(value, stride)


def padding_mode(value: object, accepted: tuple[str, ...] = PADDING_MODES) -> str:
    """Returns ``value`` if it is one of the ``accepted`` padding modes."""
    if not isinstance(value, str):
        raise TypeError(
            f"padding_mode must be a str out of {', '.join(accepted)}, got {type(value).__name__}"
        )
    if value not in accepted:
        raise ValueError(f"padding_mode must be one of {', '.join(accepted)}, got {value!r}")
    return value


def channels(in_channels: object, out_channels: object, groups: object) -> tuple[int, int, int]:
    """Returns the three numbers, checked to be ints of which the last divides the others."""
    checked = (
        integer("in_channels", in_channels, 0),
        integer("out_channels", out_channels, 0),
        integer("groups", groups, 1),
    )
    for name, number in zip(("in_channels", "out_channels"), checked, strict=False):
        if number % checked[2] != 0:
            raise ValueError(f"{name} must be divisible by groups={checked[2]}, got {number}")
    return checked


def parameter_dtype(value: object) -> torch.dtype | None:
    """Returns ``value`` if it is None or a dtype that parameters may have."""
    if value is None:
        return None
    if value not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"dtype must be None or one of {names}, got {value!r}")
    assert isinstance(value, torch.dtype)
    return value
