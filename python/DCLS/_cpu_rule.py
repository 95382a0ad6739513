"""What ``method="auto"`` knows of CPUs: a table of terms, each of which rests on measurements.

A term describes layers on which the direct convolution was at least as fast as torch's. Where no
term holds, torch's convolution is taken. The terms were measured with two threads in float32, on a
machine with AVX-512 where a term does not say more. A term names the file of
``benchmarks/results`` that it rests on: most are ``conv-rule-cpu``, which
``python benchmarks/bench_rule.py --threads 2`` writes and a test replays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import torch

#: Points of an input from which on the padding of its planes no longer weighs: 28 x 28.
LARGE_MAP: Final = 784

#: 56 x 56: there torch's convolution of a dense 17x17 kernel took longer, on 28 x 28 it did not.
VERY_LARGE_MAP: Final = 3136

#: Below 14 x 14, most of what a direct convolution reads is padding.
SMALL_MAP: Final = 196

#: With so few values a layer costs what its calls cost, and the direct way makes fewer of them.
FEW_VALUES: Final = 16384

#: Input channels of a group: one, up to 4, or more. With more, torch multiplies matrices.
Channels = Literal["one", "few", "many"]
FEW_CHANNELS: Final = 4


class Facts(NamedTuple):
    """What the rule looks at."""

    ndim: int
    channels: Channels
    #: Grid points of the kernel of one pair of channels.
    size: int
    #: Points of the input.
    points: int
    channels_last: bool
    #: Whether a gradient of the kernel is wanted.
    training: bool
    #: Values of the whole input.
    values: float
    #: Whether the images of the batch fill vectors as well as their rows do (1-D only).
    batch_fills_vectors: bool
    #: Whether the convolution pads: torch's then takes longer.
    padded: bool
    #: Whether vectors are those of AVX-512. There torch multiplies matrices faster, too.
    wide: bool


class Term(NamedTuple):
    """Layers for which the direct convolution is taken; None admits every value."""

    name: str
    ndim: tuple[int, ...]
    channels: Channels
    #: Grid points of the kernel, from the first number on and below the second.
    size: tuple[int, float]
    #: At most so large a part of them is not zero.
    filled: float = 1.0
    points: tuple[int, float] = (0, float("inf"))
    #: At most so many values of the input.
    values: float = float("inf")
    channels_last: bool | None = None
    training: bool | None = None
    batch_fills_vectors: bool | None = None
    padded: bool | None = None
    wide: bool | None = None
    #: What it rests on.
    measured: str = "conv-rule-cpu"

    def holds(self, facts: Facts) -> bool:
        """Whether the term describes the layer, if its kernel is filled no more than it says."""
        return (
            facts.ndim in self.ndim
            and facts.channels == self.channels
            and self.size[0] <= facts.size < self.size[1]
            and self.points[0] <= facts.points < self.points[1]
            and facts.values <= self.values
            and self.channels_last in (None, facts.channels_last)
            and self.training in (None, facts.training)
            and self.batch_fills_vectors in (None, facts.batch_fills_vectors)
            and self.padded in (None, facts.padded)
            and self.wide in (None, facts.wide)
        )


_ANY: Final = float("inf")
_LARGE: Final = (LARGE_MAP, _ANY)
_NOT_LARGE: Final = (0, LARGE_MAP)
_PLANES: Final = (2, 3)

#: Where vectors hold 32 bytes: ``python benchmarks/bench_rule.py --schedule --threads 2``, and 1.
_WIDTHS: Final = "conv-rule-widths-cpu"

#: There, depthwise planes: ``python benchmarks/bench_rule.py --depthwise --threads 2``.
_NARROW: Final = "conv-rule-narrow-cpu"

#: The same where they hold 64 bytes.
_WIDE: Final = "conv-rule-wide-cpu"

#: The first term that holds is the reason that ``explain`` gives.
# fmt: off
TERMS: Final[tuple[Term, ...]] = (
    # One axis.
    Term("depthwise line", (1,), "one", (9, _ANY), points=_LARGE),
    Term("line, few channels a group", (1,), "few", (3, _ANY), points=_LARGE),
    Term("short depthwise line", (1,), "one", (25, _ANY)),
    Term("short line, few channels a group", (1,), "few", (25, _ANY)),
    # Delays: torch multiplies matrices, the direct convolution visits the cells that are not zero.
    Term("padded dense line, the batch fills vectors", (1,), "many", (25, _ANY),
         batch_fills_vectors=True, padded=True, measured=_WIDTHS),
    Term("dense line in training, the batch fills vectors", (1,), "many", (30, _ANY),
         training=True, batch_fills_vectors=True, measured=_WIDTHS),
    Term("short dense line in training, the batch fills vectors", (1,), "many", (25, 30), 0.9,
         training=True, batch_fills_vectors=True, measured=_WIDTHS),
    Term("dense line, the batch fills vectors", (1,), "many", (25, _ANY), 0.7, training=False,
         batch_fills_vectors=True, measured=_WIDTHS),
    Term("small dense line, the batch fills vectors", (1,), "many", (9, 25), 0.3,
         batch_fills_vectors=True, measured="extrapolated from size 25"),
    Term("long dense line", (1,), "many", (25, _ANY), 0.7, points=_LARGE,
         batch_fills_vectors=False),
    Term("padded dense line, wide vectors", (1,), "many", (25, _ANY), 0.57,
         batch_fills_vectors=False, padded=True, wide=True),
    Term("padded dense line in training", (1,), "many", (25, _ANY), 0.57, training=True,
         batch_fills_vectors=False, padded=True, wide=False, measured=_WIDTHS),
    Term("padded dense line", (1,), "many", (25, _ANY), 0.5, batch_fills_vectors=False,
         padded=True, wide=False, measured=_WIDTHS),
    Term("half-filled dense line in training", (1,), "many", (25, _ANY), 0.47, training=True,
         batch_fills_vectors=False, measured=_WIDTHS),
    Term("sparse dense line", (1,), "many", (25, _ANY), 0.33, batch_fills_vectors=False,
         measured=_WIDTHS),
    # Two or three axes, many channels a group.
    Term("dense planes, large kernel", (2,), "many", (225, _ANY), points=_LARGE,
         channels_last=False,
         measured="extrapolated from 13x13: on larger kernels torch takes over a minute"),
    Term("dense planes, very large kernel", (2,), "many", (900, _ANY), channels_last=False),
    Term("dense planes, few cells", (2,), "many", (49, _ANY), 0.3, points=_LARGE),
    Term("dense planes, few cells, channels last", (2,), "many", (25, _ANY), 0.3, points=_LARGE,
         channels_last=True),
    Term("dense planes in training, few cells", (2,), "many", (225, _ANY), 0.3, training=True),
    Term("dense planes, very few cells", _PLANES, "many", (49, _ANY), 0.1),
    Term("dense planes, very few cells, channels last", _PLANES, "many", (25, _ANY), 0.1,
         points=_LARGE, channels_last=True, measured="extrapolated from 7x7"),
    # Two or three axes, up to four channels a group.
    Term("grouped planes", _PLANES, "few", (9, _ANY), points=_LARGE, channels_last=False),
    Term("grouped planes, channels last", _PLANES, "few", (25, _ANY), points=_LARGE,
         channels_last=True),
    Term("small grouped planes in training", _PLANES, "few", (25, _ANY), points=_NOT_LARGE,
         channels_last=False, training=True),
    Term("small grouped planes in training, large kernel", _PLANES, "few", (225, _ANY),
         points=_NOT_LARGE, training=True),
    Term("small grouped planes, very large kernel", _PLANES, "few", (900, _ANY), points=_NOT_LARGE),
    Term("small grouped planes, half of the cells", _PLANES, "few", (49, _ANY), 0.5,
         points=_NOT_LARGE),
    # With vectors of 64 bytes, short lines and small maps fill some, too.
    Term("short depthwise line, wide vectors", (1,), "one", (3, 25), points=_NOT_LARGE, wide=True),
    Term("short line, few channels a group, wide vectors", (1,), "few", (3, 25),
         points=_NOT_LARGE, wide=True),
    Term("short dense line, few cells, wide vectors", (1,), "many", (9, 25), 0.25, wide=True),
    Term("grouped planes, wide vectors", _PLANES, "few", (9, _ANY), wide=True),
    Term("dense planes, some cells, wide vectors", (2,), "many", (25, _ANY), 0.27, wide=True),
    Term("dense volumes, some cells, wide vectors", (3,), "many", (27, _ANY), 0.3, wide=True),
    # Two or three axes, depthwise.
    Term("few small depthwise planes", (2,), "one", (25, 121), points=_NOT_LARGE, values=FEW_VALUES,
         measured="conv-rule-small-cpu"),
    Term("depthwise planes in training", _PLANES, "one", (25, _ANY), channels_last=False,
         training=True),
    Term("large depthwise planes in training, channels last", _PLANES, "one", (25, _ANY),
         points=_LARGE, channels_last=True, training=True),
    Term("small depthwise planes in training, channels last", _PLANES, "one", (81, _ANY),
         points=_NOT_LARGE, channels_last=True, training=True),
    # Inference is what torch's depthwise kernels are fast at.
    Term("depthwise planes, large kernel", _PLANES, "one", (225, _ANY), channels_last=False,
         training=False),
    Term("large depthwise planes", _PLANES, "one", (49, _ANY), points=_LARGE, channels_last=False,
         training=False),
    Term("depthwise planes, large kernel, channels last", _PLANES, "one", (225, _ANY), 0.5,
         points=_LARGE, channels_last=True, training=False),
    Term("large depthwise planes, channels last", (2,), "one", (81, 225), points=_LARGE,
         channels_last=True, training=False),
    Term("small depthwise planes, channels last", (2,), "one", (169, 225),
         points=(SMALL_MAP, LARGE_MAP), channels_last=True, training=False),
    Term("large depthwise planes, wide vectors", _PLANES, "one", (9, 49), points=_LARGE,
         channels_last=False, training=False, wide=True, measured=_WIDE),
    Term("large depthwise planes in training, wide vectors", _PLANES, "one", (9, 25),
         points=_LARGE, channels_last=False, training=True, wide=True, measured=_WIDE),
    Term("small depthwise planes, some cells, wide vectors", _PLANES, "one", (25, 225), 0.4,
         points=(SMALL_MAP, LARGE_MAP), channels_last=False, training=False, wide=True,
         measured=_WIDE),
    Term("very small depthwise planes, few cells, wide vectors", (2,), "one", (25, 225), 0.15,
         points=(0, SMALL_MAP), channels_last=False, training=False, wide=True, measured=_WIDE),
    Term("depthwise planes, some cells, wide vectors, channels last", (2,), "one", (49, _ANY), 0.3,
         points=(SMALL_MAP, _ANY), channels_last=True, training=False, wide=True, measured=_WIDE),
    Term("very small depthwise planes, some cells, wide vectors", (2,), "one", (25, 100), 0.33,
         points=(0, SMALL_MAP), channels_last=False, training=False, wide=True, measured=_WIDE),
    Term("depthwise planes, small kernel, some cells, wide vectors, channels last", (2,), "one",
         (25, 49), 0.33, points=(SMALL_MAP, _ANY), channels_last=True, training=False, wide=True,
         measured=_WIDE),
    # Dense kernels that take the fast FIR algorithm.
    Term("very large depthwise planes, large kernel, wide vectors, channels last", (2,), "one",
         (225, _ANY), points=(VERY_LARGE_MAP, _ANY), channels_last=True, training=False, wide=True,
         measured=_WIDE),
    Term("depthwise volumes, some cells, wide vectors, channels last", (3,), "one", (125, _ANY),
         0.3, points=_LARGE, channels_last=True, training=False, wide=True, measured=_WIDE),
    Term("small depthwise volumes, few cells, wide vectors, channels last", (3,), "one",
         (125, _ANY), 0.15, points=_NOT_LARGE, channels_last=True, training=False, wide=True,
         measured=_WIDE),
    Term("very small depthwise planes, few cells, wide vectors, channels last", (2,), "one",
         (121, 225), 0.15, points=(0, SMALL_MAP), channels_last=True, training=False, wide=True,
         measured=_WIDE),
    Term("small depthwise planes in training, wide vectors, channels last", _PLANES, "one",
         (25, 81), points=_NOT_LARGE, channels_last=True, training=True, wide=True,
         measured=_WIDE),
    # With vectors of 32 bytes, torch's depthwise kernels are slower, and from 11x11 on they are not
    # taken.
    Term("depthwise planes, narrow vectors", _PLANES, "one", (9, _ANY), channels_last=False,
         training=False, wide=False, measured=_NARROW),
    Term("depthwise planes in training, narrow vectors", _PLANES, "one", (9, _ANY),
         points=(SMALL_MAP, _ANY), channels_last=False, training=True, wide=False,
         measured=_NARROW),
    Term("depthwise planes, narrow vectors, channels last", _PLANES, "one", (25, _ANY),
         points=(SMALL_MAP, _ANY), channels_last=True, training=False, wide=False,
         measured=_NARROW),
    Term("small depthwise planes, narrow vectors, channels last", _PLANES, "one", (49, _ANY),
         points=(0, SMALL_MAP), channels_last=True, training=False, wide=False, measured=_NARROW),
    Term("depthwise planes in training, narrow vectors, channels last", _PLANES, "one", (25, _ANY),
         channels_last=True, training=True, wide=False, measured=_NARROW),
)
# fmt: on


#: The reason that ``explain`` gives where torch's convolution is not taken for being wrong.
TORCH_ERRS: Final = "torch's gradient of such a kernel may be wrong"

#: Whether torch uses AVX-512, whatever DCLS uses.
TORCH_HAS_AVX512: Final = torch.backends.cpu.get_cpu_capability() == "AVX512"

#: Tall kernels: so many rows or more, and fewer columns than the second number.
_TALL: Final = (18, 14)

#: Columns of kernels that are as wide as the input: from the first number on, below the second.
_FULL_WIDTH: Final = (14, 20)


def torch_errs(
    kernel_size: Sequence[int],
    input_size: Sequence[int],
    padding: Sequence[int],
    dtype: torch.dtype,
) -> bool:
    """Whether torch's gradient of a kernel may be wrong, or even written to memory of others.

    With AVX-512, that of ``conv2d`` in float32 was (torch 2.13.0, oneDNN 3.12.0). Fuzzing found it:

    - Narrow kernels of 18 rows or more, taller than the input: of 6000 random convolutions with
      kernels of 17 rows or more, 176 wrote beyond their memory or were wrong, and all of these are
      such. An example is an input of (3, 1, 9, 31), a kernel of 20x3 and a padding of (10, 0).
    - Kernels of 14 to 19 columns that are as wide as the input, without a padding of the columns:
      an input of (3, 1, 46, 17) and a kernel of 1x17 or 17x17, for example.

    With AVX2 both were right. Depthwise kernels were, too, but not worth another condition.
    """
    if not TORCH_HAS_AVX512 or dtype != torch.float32 or len(kernel_size) != 2:
        return False
    rows, columns = kernel_size
    if rows >= _TALL[0] and columns < _TALL[1] and input_size[0] < rows:
        return True
    full = _FULL_WIDTH[0] <= columns < _FULL_WIDTH[1] and padding[1] == 0
    return full and input_size[1] == columns


#: The reason where torch's convolution would not come back.
TORCH_HANGS: Final = "torch's convolution of such a kernel may not end"


def torch_hangs(
    channels: int,
    kernel_size: Sequence[int],
    channels_last: bool,
    dtype: torch.dtype,
) -> bool:
    """Whether torch's depthwise convolution may generate code without end.

    With AVX-512 it did in bfloat16 and channels_last (torch 2.13.0, oneDNN 3.12.0): ``conv2d`` of
    3 and 16 channels on 56x56, kernels of 15x15, 17x17 and 1x17, with the padding that keeps the
    size. Kernels of up to 13 columns, 24 channels and more, and contiguous tensors came back.
    """
    few = channels < 24 and channels_last and dtype == torch.bfloat16
    return few and TORCH_HAS_AVX512 and len(kernel_size) == 2 and kernel_size[1] > 13


def candidates(facts: Facts) -> tuple[Term, ...]:
    """Returns the terms that hold if the kernel is filled no more than each says, in their order.

    Those behind the first one that any kernel satisfies are left out: nobody comes to them.
    """
    found: list[Term] = []
    for term in TERMS:
        if term.holds(facts):
            found.append(term)
            if term.filled >= 1:
                break
    return tuple(found)


#: A layer asks about the same few facts over and over. Not for the compiler, which cannot look into
#: it.
candidates_again = functools.lru_cache(maxsize=1024)(candidates)
