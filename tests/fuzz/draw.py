"""Random cases: every number that a case needs, readable, as JSON."""

from __future__ import annotations

import math
import random
from typing import Any

from layers import LAYERS, layer_id

from DCLS import VERSIONS

Case = dict[str, Any]

DTYPES = ("float32", "float64", "float16", "bfloat16")
LAYOUTS = ("contiguous", "transposed", "channels_last", "sliced", "offset", "expanded")
MODES = ("grad", "func_grad", "vmap", "jvp", "second", "autocast", "non_finite")

#: The layers by name, and those of im2col.
LAYER_OF = {layer_id(layer): layer for layer in LAYERS}
IM2COL = ("im2col.Dcls1d", "im2col.Dcls2d", "im2col.Dcls3d")

#: Products that a case may cost the oracle, so that one takes milliseconds.
MOST_PRODUCTS = 1_000_000
MOST_TAPS = 60_000
MOST_VALUES = 60_000


def _length(r: random.Random, most: int) -> int:
    """Small, or one beside a power of two or three: where vectors and tiles end."""
    if r.random() < 0.5:
        return r.randint(1, min(most, 9))
    if r.random() < 0.5:
        return r.randint(1, most)
    edge: int = r.choice([8, 16, 32, 48, 64, 96, 128, 256, 512])
    return max(1, min(most, edge + r.randint(-1, 1)))


def _step(r: random.Random) -> int:
    return r.choice([1, 1, 1, 2, 3, r.randint(1, 64)])


def _channels(r: random.Random, empty: bool = True) -> tuple[int, int, int]:
    """Input channels, output channels and groups."""
    groups = r.choice([1, 1, 2, 3, 8, 17])
    if r.random() < 0.4:
        return groups, groups, groups
    few = [0, 1, 2, 3, 8, 9, 33] if empty and r.random() < 0.1 else [1, 2, 3, 4, 9, 33]
    return groups * r.choice(few), groups * r.choice(few), groups


def _draw_conv(r: random.Random, ndim: int) -> Case:
    most = (700, 40, 12)[ndim - 1]
    first, second, groups = _channels(r)
    case: Case = {"batch": r.choice([0, 1, 1, 2, 3, 17]), "channels": [first, second]}
    case |= {"groups": groups, "stride": [_step(r) for _ in range(ndim)]}
    case["kernel"] = [_length(r, most // 2) for _ in range(ndim)]
    case["dilation"] = [_step(r) for _ in range(ndim)]
    case["padding"] = [r.choice([0, k // 2, r.randint(0, 2 * k)]) for k in case["kernel"]]
    case["input"] = [_length(r, most) for _ in range(ndim)]
    if ndim == 2 and r.random() < 0.2:  # what the fast FIR algorithm of the CPU is for
        case |= {"batch": r.randint(1, 3), "channels": [groups, groups], "stride": [1, 1]}
        case |= {"dilation": [1, 1], "kernel": [r.randint(10, 20), r.randint(10, 20)]}
        case["padding"] = [r.randint(0, k) for k in case["kernel"]]
        case["input"] = [r.randint(24, 48), r.randint(16, 40)]
    return case


def _fit(case: Case) -> bool:
    """Makes room for one output, where there is little room; whether the case is small enough."""
    spans = zip(case["kernel"], case["dilation"], strict=True)
    reach = [d * (k - 1) + 1 for k, d in spans]
    case["input"] = [
        max(n, s - 2 * p) for n, s, p in zip(case["input"], reach, case["padding"], strict=True)
    ]
    sizes = zip(case["input"], case["padding"], reach, case["stride"], strict=True)
    outputs = [(n + 2 * p - s) // step + 1 for n, p, s, step in sizes]
    first, second = case["channels"]
    batch = max(1, case["batch"])  # hostile calls have an image
    per_pair = math.prod(case["kernel"]) * math.prod(outputs)
    padded = math.prod(n + 2 * p for n, p in zip(case["input"], case["padding"], strict=True))
    if max(batch * first * padded, batch * second * math.prod(outputs)) > MOST_VALUES:
        return False
    return batch * first * second // case["groups"] * per_pair <= MOST_PRODUCTS


def draw(seed: int) -> Case:
    """Returns the case of a seed."""
    r = random.Random(seed)
    while True:
        case = _draw_any(r)
        if case is not None:
            return case


def _draw_any(r: random.Random) -> Case | None:
    kind = r.choice(["construct", "conv", "im2col", "im2col_conv", "layer", "layer"])
    case: Case = {"kind": kind, "seed": r.randrange(1 << 30), "dtype": r.choice(DTYPES)}
    case["mode"] = r.choice(MODES) if r.random() < 0.6 else "grad"
    if case["mode"] in ("jvp", "second"):
        case["dtype"] = "float64"
    if case["mode"] == "autocast":
        case["dtype"] = "float32"
    ndim = r.randint(1, 3)
    case["version"] = r.choice(VERSIONS)
    case["bias"] = r.random() < 0.7
    case["layouts"] = [r.choice(LAYOUTS) if r.random() < 0.5 else "contiguous" for _ in range(6)]
    case["needs"] = [r.random() < 0.8 for _ in range(5)]  # input, weight, bias, P, SIG
    case["batched"] = [r.random() < 0.5 for _ in range(6)]  # and the support
    case["widths"] = r.choice(["new", "new", "wide", "special"])
    case["positions"] = r.choice(["near", "near", "far"])
    case["sigma_min"] = r.choice([None, None, 0.05, 2.0])
    elements = r.choice([0, 1, 1, 2, 3, 7, 17])
    case["elements"] = elements
    if kind == "construct":
        most = (600, 24, 9)[ndim - 1]
        case["kernel"] = [_length(r, most) for _ in range(ndim)]
        case["lead"] = [r.choice([0, 1, 2, 3, 5]) for _ in range(r.randint(0, 3))]
        taps = math.prod(case["kernel"]) * math.prod(case["lead"]) * elements
        return case if taps <= MOST_TAPS else None
    case |= _draw_conv(r, ndim)
    if kind == "conv":
        case["density"] = r.choice([0.02, 0.1, 0.4, 1.0])
        case["support"] = r.random() < 0.5
        return case if _fit(case) else None
    case["dilation"] = [1] * ndim
    case["workspace"] = r.choice([None, None, "small"])
    case["position_dtype"] = r.choice(["own", "float32"])
    if kind == "layer":
        name = r.choice([*LAYER_OF, *IM2COL])
        spec = LAYER_OF.get(name)
        ndim = spec.ndim if spec else IM2COL.index(name) + 1
        case |= _draw_conv(r, ndim)
        case["dilation"] = [1] * ndim
        case["layer"] = name
        case["method"] = r.choice(["auto", "direct", "conv"])
        case["padding_mode"] = r.choice(["zeros"] * 5 + ["reflect", "replicate", "circular"])
        if spec is not None and spec.name == "Dcls2dK1d":
            case["kernel"][1 - spec.more["flat_dim"]] = 1
        if 0 in case["channels"]:  # torch's layers take none
            return None
        if spec is not None and spec.transposed:
            # Its products are those of a convolution the other way.
            case["padding"] = [r.randint(0, k - 1) for k in case["kernel"]]
            case["output_padding"] = [r.randrange(step) for step in case["stride"]]
            case["padding_mode"] = "zeros"
            sizes = zip(case["input"], case["stride"], case["kernel"], strict=True)
            outputs = math.prod(max(1, (n - 1) * s + k) for n, s, k in sizes)
            if outputs * max(1, case["batch"]) * max(case["channels"]) > MOST_VALUES:
                return None
            case["padding"] = [
                p if (n - 1) * s + k + o > 2 * p else 0
                for n, s, k, o, p in zip(
                    case["input"],
                    case["stride"],
                    case["kernel"],
                    case["output_padding"],
                    case["padding"],
                    strict=True,
                )
            ]
        if case["padding_mode"] == "reflect":
            sizes = zip(case["padding"], case["input"], strict=True)
            case["padding"] = [min(p, n - 1) for p, n in sizes]
        if case["padding_mode"] == "circular":
            case["padding"] = [
                min(p, n) for p, n in zip(case["padding"], case["input"], strict=True)
            ]
        case["elements"] = max(1, elements)
        case["sigma_min"] = None
    first, second = case["channels"]
    shared = first * second // case["groups"]
    if math.prod(case["kernel"]) * shared * max(1, elements) > MOST_TAPS:
        return None
    return case if _fit(case) else None
