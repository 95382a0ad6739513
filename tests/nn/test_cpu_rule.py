"""Concrete layers on both sides of each threshold of the CPU rule, and what is chosen for them.

Written down, not derived: who changes the rule sees here which layers change sides.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from DCLS import _cpu_rule, method
from DCLS.construct.modules import Dcls2d
from DCLS.method import choose

#: Shape of the input, groups, kernel, cells that are not zero, flags, and the term that holds: None
#: for torch's convolution. T: training, L: channels last, V: no padding (else half of the kernel),
#: W: AVX-512.
# fmt: off
LAYERS: list[tuple[tuple[int, ...], int, tuple[int, ...], int, str, str | None]] = [
    ((3, 4, 784), 4, (9,), 9, "", "depthwise line"),
    ((3, 4, 784), 4, (8,), 8, "", None),
    ((3, 4, 783), 4, (9,), 9, "", None),
    ((3, 8, 784), 2, (3,), 3, "", "line, few channels a group"),
    ((3, 8, 784), 2, (2,), 2, "", None),
    ((3, 8, 783), 2, (3,), 3, "", None),
    ((3, 4, 100), 4, (25,), 25, "", "short depthwise line"),
    ((3, 4, 100), 4, (24,), 24, "", None),
    ((3, 8, 100), 2, (25,), 25, "", "short line, few channels a group"),
    ((3, 8, 100), 2, (24,), 24, "", None),
    ((16, 5, 100), 1, (25,), 25, "", "padded dense line, the batch fills vectors"),
    ((16, 5, 100), 1, (24,), 24, "", None),
    ((16, 5, 100), 1, (30,), 30, "TV", "dense line in training, the batch fills vectors"),
    ((16, 5, 100), 1, (29,), 26, "TV", "short dense line in training, the batch fills vectors"),
    ((16, 5, 100), 1, (29,), 27, "TV", None),
    ((16, 5, 100), 1, (25,), 22, "TV", "short dense line in training, the batch fills vectors"),
    ((16, 5, 100), 1, (24,), 22, "TV", None),
    ((16, 5, 100), 1, (30,), 21, "V", "dense line, the batch fills vectors"),
    ((16, 5, 100), 1, (30,), 22, "V", None),
    ((16, 5, 100), 1, (24,), 16, "V", None),
    ((16, 5, 100), 1, (9,), 2, "", "small dense line, the batch fills vectors"),
    ((16, 5, 100), 1, (8,), 2, "", None),
    ((16, 5, 100), 1, (24,), 7, "", "small dense line, the batch fills vectors"),
    ((16, 5, 100), 1, (9,), 3, "", None),
    ((3, 5, 100), 1, (9,), 2, "", None),
    ((3, 5, 784), 1, (25,), 17, "", "long dense line"),
    ((3, 5, 784), 1, (25,), 18, "", None),
    ((3, 5, 784), 1, (24,), 16, "", None),
    ((3, 5, 783), 1, (25,), 17, "", None),
    ((3, 5, 100), 1, (100,), 56, "W", "padded dense line, wide vectors"),
    ((3, 5, 100), 1, (100,), 58, "W", None),
    ((3, 5, 100), 1, (24,), 12, "W", None),
    ((3, 5, 100), 1, (100,), 56, "T", "padded dense line in training"),
    ((3, 5, 100), 1, (100,), 58, "T", None),
    ((3, 5, 100), 1, (24,), 12, "T", None),
    ((3, 5, 100), 1, (100,), 50, "", "padded dense line"),
    ((3, 5, 100), 1, (100,), 51, "", None),
    ((3, 5, 100), 1, (24,), 12, "", None),
    ((3, 5, 200), 1, (100,), 47, "TV", "half-filled dense line in training"),
    ((3, 5, 200), 1, (100,), 48, "TV", None),
    ((3, 5, 200), 1, (100,), 47, "TVW", "half-filled dense line in training"),
    ((3, 5, 200), 1, (24,), 7, "TV", None),
    ((3, 5, 200), 1, (100,), 33, "V", "sparse dense line"),
    ((3, 5, 200), 1, (100,), 34, "V", None),
    ((3, 5, 200), 1, (100,), 33, "VW", "sparse dense line"),
    ((3, 5, 200), 1, (24,), 7, "V", None),
    ((6, 5, 28, 28), 1, (15, 15), 225, "", "dense planes, large kernel"),
    ((6, 5, 28, 28), 1, (14, 16), 224, "", None),
    ((6, 5, 27, 29), 1, (15, 15), 225, "", None),
    ((6, 5, 28, 28), 1, (15, 15), 225, "L", None),
    ((40, 5, 10, 10), 1, (30, 30), 900, "", "dense planes, very large kernel"),
    ((40, 5, 10, 10), 1, (29, 31), 899, "", None),
    ((40, 5, 10, 10), 1, (30, 30), 900, "L", None),
    ((6, 5, 28, 28), 1, (7, 7), 14, "", "dense planes, few cells"),
    ((6, 5, 28, 28), 1, (6, 8), 14, "", None),
    ((6, 5, 28, 28), 1, (7, 7), 15, "", None),
    ((6, 5, 27, 29), 1, (7, 7), 14, "", None),
    ((6, 5, 28, 28), 1, (5, 5), 7, "L", "dense planes, few cells, channels last"),
    ((6, 5, 28, 28), 1, (4, 6), 7, "L", None),
    ((6, 5, 28, 28), 1, (5, 5), 8, "L", None),
    ((6, 5, 27, 29), 1, (5, 5), 7, "L", None),
    ((6, 5, 28, 28), 1, (5, 5), 7, "", None),
    ((40, 5, 10, 10), 1, (15, 15), 67, "T", "dense planes in training, few cells"),
    ((40, 5, 10, 10), 1, (14, 16), 67, "T", None),
    ((40, 5, 10, 10), 1, (15, 15), 68, "T", None),
    ((40, 5, 10, 10), 1, (15, 15), 67, "", None),
    ((40, 5, 1, 10, 10), 1, (1, 7, 7), 4, "", "dense planes, very few cells"),
    ((40, 5, 1, 10, 10), 1, (1, 6, 8), 4, "", None),
    ((40, 5, 1, 10, 10), 1, (1, 7, 7), 5, "", None),
    ((6, 5, 1, 28, 28), 1, (1, 5, 5), 2, "L", "dense planes, very few cells, channels last"),
    ((6, 5, 1, 28, 28), 1, (1, 4, 6), 2, "L", None),
    ((6, 5, 1, 28, 28), 1, (1, 5, 5), 3, "L", None),
    ((6, 5, 1, 27, 29), 1, (1, 5, 5), 2, "L", None),
    ((6, 5, 1, 28, 28), 1, (1, 5, 5), 2, "", None),
    ((4, 8, 28, 28), 2, (3, 3), 9, "", "grouped planes"),
    ((4, 8, 28, 28), 2, (2, 4), 8, "", None),
    ((4, 8, 27, 29), 2, (3, 3), 9, "", None),
    ((4, 8, 28, 28), 2, (3, 3), 9, "L", None),
    ((4, 8, 28, 28), 2, (5, 5), 25, "L", "grouped planes, channels last"),
    ((4, 8, 28, 28), 2, (4, 6), 24, "L", None),
    ((4, 8, 27, 29), 2, (5, 5), 25, "L", None),
    ((4, 8, 28, 28), 2, (5, 5), 25, "", "grouped planes"),
    ((25, 8, 10, 10), 2, (5, 5), 25, "T", "small grouped planes in training"),
    ((25, 8, 10, 10), 2, (4, 6), 24, "T", None),
    ((25, 8, 27, 29), 2, (5, 5), 25, "T", "small grouped planes in training"),
    ((25, 8, 28, 28), 2, (5, 5), 25, "T", "grouped planes"),
    ((25, 8, 10, 10), 2, (5, 5), 25, "TL", None),
    ((25, 8, 10, 10), 2, (5, 5), 25, "", None),
    ((25, 8, 10, 10), 2, (15, 15), 225, "TL", "small grouped planes in training, large kernel"),
    ((25, 8, 10, 10), 2, (14, 16), 224, "TL", None),
    ((25, 8, 27, 29), 2, (15, 15), 225, "TL", "small grouped planes in training, large kernel"),
    ((25, 8, 28, 28), 2, (15, 15), 225, "TL", "grouped planes, channels last"),
    ((25, 8, 10, 10), 2, (15, 15), 225, "L", None),
    ((25, 8, 10, 10), 2, (30, 30), 900, "", "small grouped planes, very large kernel"),
    ((25, 8, 10, 10), 2, (29, 31), 899, "", None),
    ((25, 8, 27, 29), 2, (30, 30), 900, "", "small grouped planes, very large kernel"),
    ((25, 8, 28, 28), 2, (30, 30), 900, "", "grouped planes"),
    ((25, 8, 10, 10), 2, (7, 7), 24, "", "small grouped planes, half of the cells"),
    ((25, 8, 10, 10), 2, (6, 8), 24, "", None),
    ((25, 8, 10, 10), 2, (7, 7), 25, "", None),
    ((25, 8, 27, 29), 2, (7, 7), 24, "", "small grouped planes, half of the cells"),
    ((25, 8, 28, 28), 2, (7, 7), 24, "", "grouped planes"),
    ((40, 4, 10, 10), 4, (5, 5), 25, "", "few small depthwise planes"),
    ((40, 4, 10, 10), 4, (4, 6), 24, "W", None),
    ((40, 4, 10, 10), 4, (10, 12), 120, "", "few small depthwise planes"),
    ((40, 4, 10, 10), 4, (11, 11), 121, "W", None),
    ((1, 4, 27, 29), 4, (5, 5), 25, "", "few small depthwise planes"),
    ((1, 4, 28, 28), 4, (5, 5), 25, "W", "large depthwise planes, wide vectors"),
    ((40, 4, 27, 29), 4, (5, 5), 25, "W", None),
    ((40, 4, 28, 28), 4, (5, 5), 25, "W", "large depthwise planes, wide vectors"),
    ((32, 4, 8, 16), 4, (5, 5), 25, "", "few small depthwise planes"),
    ((33, 4, 8, 16), 4, (5, 5), 25, "W", None),
    ((50, 4, 10, 10), 4, (5, 5), 25, "T", "depthwise planes in training"),
    ((50, 4, 10, 10), 4, (4, 6), 24, "T", None),
    (
        *((50, 4, 10, 10), 4, (5, 5), 25, "TLW"),
        "small depthwise planes in training, wide vectors, channels last",
    ),
    ((50, 4, 10, 10), 4, (5, 5), 25, "W", None),
    ((7, 4, 28, 28), 4, (5, 5), 25, "TL", "large depthwise planes in training, channels last"),
    ((7, 4, 28, 28), 4, (4, 6), 24, "TL", None),
    (
        *((7, 4, 27, 29), 4, (5, 5), 25, "TLW"),
        "small depthwise planes in training, wide vectors, channels last",
    ),
    ((7, 4, 28, 28), 4, (5, 5), 25, "T", "depthwise planes in training"),
    ((7, 4, 28, 28), 4, (5, 5), 25, "LW", None),
    ((50, 4, 10, 10), 4, (9, 9), 81, "TL", "small depthwise planes in training, channels last"),
    (
        *((50, 4, 10, 10), 4, (8, 10), 80, "TLW"),
        "small depthwise planes in training, wide vectors, channels last",
    ),
    ((50, 4, 27, 29), 4, (9, 9), 81, "TL", "small depthwise planes in training, channels last"),
    ((50, 4, 28, 28), 4, (9, 9), 81, "TL", "large depthwise planes in training, channels last"),
    ((50, 4, 10, 10), 4, (9, 9), 81, "T", "depthwise planes in training"),
    ((50, 4, 10, 10), 4, (9, 9), 81, "LW", None),
    ((50, 4, 10, 10), 4, (15, 15), 225, "", "depthwise planes, large kernel"),
    ((50, 4, 10, 10), 4, (14, 16), 224, "W", None),
    ((50, 4, 10, 10), 4, (15, 15), 225, "LW", None),
    ((50, 4, 10, 10), 4, (15, 15), 225, "T", "depthwise planes in training"),
    ((7, 4, 28, 28), 4, (7, 7), 49, "", "large depthwise planes"),
    ((7, 4, 28, 28), 4, (6, 8), 48, "W", "large depthwise planes, wide vectors"),
    ((7, 4, 27, 29), 4, (7, 7), 49, "W", None),
    ((7, 4, 28, 28), 4, (7, 7), 49, "LW", None),
    ((7, 4, 28, 28), 4, (7, 7), 49, "T", "depthwise planes in training"),
    ((7, 4, 28, 28), 4, (15, 15), 112, "L", "depthwise planes, large kernel, channels last"),
    ((7, 4, 28, 28), 4, (14, 16), 112, "L", "large depthwise planes, channels last"),
    ((7, 4, 28, 28), 4, (15, 15), 113, "LW", None),
    ((7, 4, 27, 29), 4, (15, 15), 112, "LW", None),
    ((7, 4, 28, 28), 4, (15, 15), 112, "", "depthwise planes, large kernel"),
    ((7, 4, 28, 28), 4, (15, 15), 112, "TL", "large depthwise planes in training, channels last"),
    ((7, 4, 28, 28), 4, (9, 9), 81, "L", "large depthwise planes, channels last"),
    ((7, 4, 28, 28), 4, (8, 10), 80, "LW", None),
    ((7, 4, 28, 28), 4, (14, 16), 224, "L", "large depthwise planes, channels last"),
    ((7, 4, 28, 28), 4, (15, 15), 225, "LW", None),
    ((7, 4, 27, 29), 4, (9, 9), 81, "LW", None),
    ((7, 4, 28, 28), 4, (9, 9), 81, "", "large depthwise planes"),
    ((7, 4, 28, 28), 4, (9, 9), 81, "TL", "large depthwise planes in training, channels last"),
    ((26, 4, 14, 14), 4, (13, 13), 169, "L", "small depthwise planes, channels last"),
    ((26, 4, 14, 14), 4, (12, 14), 168, "LW", None),
    ((26, 4, 14, 14), 4, (14, 16), 224, "L", "small depthwise planes, channels last"),
    ((26, 4, 14, 14), 4, (15, 15), 225, "LW", None),
    ((26, 4, 13, 15), 4, (13, 13), 169, "LW", None),
    ((26, 4, 27, 29), 4, (13, 13), 169, "L", "small depthwise planes, channels last"),
    ((26, 4, 28, 28), 4, (13, 13), 169, "L", "large depthwise planes, channels last"),
    ((26, 4, 14, 14), 4, (13, 13), 169, "W", None),
    ((26, 4, 14, 14), 4, (13, 13), 169, "TL", "small depthwise planes in training, channels last"),
    ((3, 4, 783), 4, (3,), 3, "W", "short depthwise line, wide vectors"),
    ((3, 4, 783), 4, (2,), 2, "W", None),
    ((3, 4, 783), 4, (24,), 24, "W", "short depthwise line, wide vectors"),
    ((3, 4, 784), 4, (3,), 3, "W", None),
    ((3, 8, 783), 2, (3,), 3, "W", "short line, few channels a group, wide vectors"),
    ((3, 8, 783), 2, (2,), 2, "W", None),
    ((3, 8, 783), 2, (24,), 24, "W", "short line, few channels a group, wide vectors"),
    ((3, 8, 784), 2, (3,), 3, "W", "line, few channels a group"),
    ((3, 5, 100), 1, (12,), 3, "W", "short dense line, few cells, wide vectors"),
    ((3, 5, 100), 1, (12,), 4, "W", None),
    ((3, 5, 100), 1, (8,), 2, "W", None),
    ((3, 5, 100), 1, (24,), 6, "W", "short dense line, few cells, wide vectors"),
    ((3, 5, 100), 1, (9,), 2, "W", "short dense line, few cells, wide vectors"),
    ((25, 8, 10, 10), 2, (3, 3), 9, "W", "grouped planes, wide vectors"),
    ((25, 8, 10, 10), 2, (2, 4), 8, "W", None),
    ((25, 8, 10, 10), 2, (3, 3), 9, "LW", "grouped planes, wide vectors"),
    ((25, 8, 10, 10), 2, (3, 3), 9, "TLW", "grouped planes, wide vectors"),
    ((40, 5, 10, 10), 1, (5, 5), 6, "W", "dense planes, some cells, wide vectors"),
    ((40, 5, 10, 10), 1, (5, 5), 7, "W", None),
    ((40, 5, 10, 10), 1, (4, 6), 6, "W", None),
    ((40, 5, 10, 10), 1, (5, 5), 6, "TLW", "dense planes, some cells, wide vectors"),
    ((40, 5, 4, 5, 5), 1, (3, 3, 3), 8, "W", "dense volumes, some cells, wide vectors"),
    ((40, 5, 4, 5, 5), 1, (3, 3, 3), 9, "W", None),
    ((40, 5, 4, 5, 5), 1, (2, 3, 4), 7, "W", None),
    ((7, 4, 28, 28), 4, (3, 3), 9, "W", "large depthwise planes, wide vectors"),
    ((7, 4, 28, 28), 4, (2, 4), 8, "W", None),
    ((7, 4, 27, 29), 4, (3, 3), 9, "W", None),
    ((7, 4, 28, 28), 4, (3, 3), 9, "TW", "large depthwise planes in training, wide vectors"),
    ((7, 4, 28, 28), 4, (2, 4), 8, "TW", None),
    ((7, 4, 27, 29), 4, (3, 3), 9, "TW", None),
    ((7, 4, 28, 28), 4, (3, 3), 9, "TLW", None),
    ((26, 4, 14, 14), 4, (5, 5), 10, "W", "small depthwise planes, some cells, wide vectors"),
    ((26, 4, 14, 14), 4, (5, 5), 11, "W", None),
    ((26, 4, 14, 14), 4, (4, 6), 9, "W", None),
    ((26, 4, 13, 15), 4, (5, 5), 10, "W", None),
    ((26, 4, 27, 29), 4, (14, 16), 89, "W", "small depthwise planes, some cells, wide vectors"),
    ((50, 4, 10, 10), 4, (5, 5), 3, "W", "very small depthwise planes, few cells, wide vectors"),
    ((50, 4, 10, 10), 4, (5, 5), 4, "W", "very small depthwise planes, some cells, wide vectors"),
    ((50, 4, 10, 10), 4, (5, 5), 8, "W", "very small depthwise planes, some cells, wide vectors"),
    ((50, 4, 10, 10), 4, (5, 5), 9, "W", None),
    ((50, 4, 10, 10), 4, (9, 11), 32, "W", "very small depthwise planes, some cells, wide vectors"),
    ((50, 4, 10, 10), 4, (10, 10), 32, "W", None),
    ((50, 4, 10, 10), 4, (4, 6), 3, "W", None),
    ((50, 4, 10, 10), 4, (14, 16), 33, "W", "very small depthwise planes, few cells, wide vectors"),
    (
        *((26, 4, 14, 14), 4, (7, 7), 14, "LW"),
        "depthwise planes, some cells, wide vectors, channels last",
    ),
    ((26, 4, 14, 14), 4, (7, 7), 15, "LW", None),
    (
        *((26, 4, 14, 14), 4, (6, 8), 14, "LW"),
        "depthwise planes, small kernel, some cells, wide vectors, channels last",
    ),
    (
        *((26, 4, 14, 14), 4, (5, 5), 8, "LW"),
        "depthwise planes, small kernel, some cells, wide vectors, channels last",
    ),
    ((26, 4, 14, 14), 4, (5, 5), 9, "LW", None),
    ((26, 4, 14, 14), 4, (4, 6), 7, "LW", None),
    ((26, 4, 13, 15), 4, (5, 5), 8, "LW", None),
    (
        *((2, 4, 56, 56), 4, (15, 15), 225, "LW"),
        "very large depthwise planes, large kernel, wide vectors, channels last",
    ),
    ((2, 4, 55, 57), 4, (15, 15), 225, "LW", None),
    ((26, 4, 13, 15), 4, (7, 7), 14, "LW", None),
    (
        *((7, 4, 1, 28, 28), 4, (1, 5, 25), 37, "LW"),
        "depthwise volumes, some cells, wide vectors, channels last",
    ),
    ((7, 4, 1, 28, 28), 4, (1, 5, 25), 38, "LW", None),
    ((7, 4, 1, 28, 28), 4, (1, 4, 31), 37, "LW", None),
    (
        *((50, 4, 1, 10, 10), 4, (1, 5, 25), 18, "LW"),
        "small depthwise volumes, few cells, wide vectors, channels last",
    ),
    ((50, 4, 1, 10, 10), 4, (1, 5, 25), 19, "LW", None),
    ((50, 4, 1, 10, 10), 4, (1, 4, 31), 18, "LW", None),
    (
        *((50, 4, 10, 10), 4, (11, 11), 18, "LW"),
        "very small depthwise planes, few cells, wide vectors, channels last",
    ),
    ((50, 4, 10, 10), 4, (11, 11), 19, "LW", None),
    ((50, 4, 10, 10), 4, (10, 12), 18, "LW", None),
    (
        *((50, 4, 10, 10), 4, (14, 16), 33, "LW"),
        "very small depthwise planes, few cells, wide vectors, channels last",
    ),
    ((50, 4, 10, 10), 4, (15, 15), 33, "LW", None),
    ((50, 4, 10, 10), 4, (4, 6), 24, "TLW", None),
    ((7, 4, 28, 28), 4, (8, 10), 80, "TLW", "large depthwise planes in training, channels last"),
    ((50, 4, 10, 10), 4, (3, 3), 9, "", "depthwise planes, narrow vectors"),
    ((50, 4, 10, 10), 4, (2, 4), 8, "", None),
    ((7, 4, 1, 28, 28), 4, (1, 3, 3), 9, "", "depthwise planes, narrow vectors"),
    ((7, 4, 14, 14), 4, (3, 3), 9, "T", "depthwise planes in training, narrow vectors"),
    ((7, 4, 14, 14), 4, (2, 4), 8, "T", None),
    ((7, 4, 13, 15), 4, (3, 3), 9, "T", None),
    ((26, 4, 14, 14), 4, (5, 5), 25, "L", "depthwise planes, narrow vectors, channels last"),
    ((26, 4, 14, 14), 4, (4, 6), 24, "L", None),
    ((26, 4, 13, 15), 4, (5, 5), 25, "L", None),
    ((7, 4, 28, 28), 4, (15, 15), 225, "L", "depthwise planes, narrow vectors, channels last"),
    (
        *((50, 4, 10, 10), 4, (7, 7), 49, "L"),
        "small depthwise planes, narrow vectors, channels last",
    ),
    ((50, 4, 10, 10), 4, (6, 8), 48, "L", None),
    (
        *((50, 4, 10, 10), 4, (5, 5), 25, "TL"),
        "depthwise planes in training, narrow vectors, channels last",
    ),
    ((50, 4, 10, 10), 4, (4, 6), 24, "TL", None),
]
# fmt: on


@pytest.mark.parametrize(("shape", "groups", "kernel", "cells", "flags", "term"), LAYERS, ids=str)
def test_choice(
    shape: tuple[int, ...],
    groups: int,
    kernel: tuple[int, ...],
    cells: int,
    flags: str,
    term: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(method, "_WIDE_VECTORS", "W" in flags)
    facts: dict[str, Any] = {
        "input_shape": shape,
        "out_channels": 5 * groups,
        "groups": groups,
        "kernel_size": kernel,
        "cells": cells,
        "padding": [0 if "V" in flags else size // 2 for size in kernel],
    }
    choice = choose(**facts, training="T" in flags, channels_last="L" in flags)
    assert choice.method == ("conv" if term is None else "direct")
    assert choice.reason.partition(" (")[0] == (term or "no term of the rule holds")


def test_each_term_has_a_layer() -> None:
    assert {layer[-1] for layer in LAYERS} == {None, *(term.name for term in _cpu_rule.TERMS)}


#: Shape of the input, kernel, padding, and whether torch's gradient of the kernel may be wrong.
ERRS: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]] = [
    ((3, 1, 9, 31), (20, 3), (10, 0), True),
    ((3, 1, 17, 31), (18, 13), (9, 0), True),
    ((3, 1, 18, 31), (18, 13), (9, 0), False),
    ((3, 1, 16, 31), (17, 13), (8, 0), False),
    ((3, 1, 17, 31), (18, 14), (9, 0), False),
    ((3, 1, 46, 17), (1, 17), (0, 0), True),
    ((3, 16, 41, 17), (17, 17), (8, 0), True),
    ((3, 1, 46, 14), (1, 14), (0, 0), True),
    ((3, 1, 46, 19), (1, 19), (0, 0), True),
    ((3, 1, 46, 13), (1, 13), (0, 0), False),
    ((3, 1, 46, 20), (1, 20), (0, 0), False),
    ((3, 1, 46, 18), (1, 17), (0, 0), False),
    ((3, 1, 46, 17), (1, 17), (0, 1), False),
    ((3, 1, 46), (17,), (0,), False),
    ((3, 1, 2, 9, 31), (1, 20, 3), (0, 10, 0), False),
]


@pytest.mark.parametrize(("shape", "kernel", "padding", "errs"), ERRS, ids=str)
def test_where_torch_errs_auto_is_direct(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    padding: tuple[int, ...],
    errs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reason(**changes: Any) -> str:
        facts: dict[str, Any] = {
            "input_shape": shape,
            "out_channels": 5,
            "groups": 1,
            "kernel_size": kernel,
            "cells": 9,
            "padding": padding,
            "training": True,
        }
        return choose(**(facts | changes)).reason

    monkeypatch.setattr(_cpu_rule, "TORCH_HAS_AVX512", True)
    assert (reason() == _cpu_rule.TORCH_ERRS) == errs
    assert reason(training=False) != _cpu_rule.TORCH_ERRS
    assert reason(dtype=torch.float64) != _cpu_rule.TORCH_ERRS
    monkeypatch.setattr(_cpu_rule, "TORCH_HAS_AVX512", False)
    assert reason() != _cpu_rule.TORCH_ERRS


@pytest.mark.parametrize(("shape", "kernel", "padding"), [e[:3] for e in ERRS if e[3]], ids=str)
def test_gradients_are_right_where_those_of_torch_are_not(
    shape: tuple[int, ...], kernel: tuple[int, ...], padding: tuple[int, ...]
) -> None:
    """Torch's are wrong, with AVX-512, of a convolution with these kernels."""
    torch.manual_seed(0)
    layer = Dcls2d(shape[1], 2, 3, dilated_kernel_size=kernel, padding=padding, version="v1")
    x = torch.randn(shape)
    same = copy.deepcopy(layer).double()
    same.method = "conv"
    output = layer(x)
    g = torch.randn_like(output)
    output.backward(g)
    same(x.double()).backward(g.double())
    for name, parameter in layer.named_parameters():
        expected = same.get_parameter(name).grad
        torch.testing.assert_close(
            parameter.grad.double(), expected, rtol=1e-4, atol=1e-4, msg=name
        )
