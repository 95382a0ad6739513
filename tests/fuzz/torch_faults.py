"""Cases in which torch's own convolution computes, and those in which it is known to be wrong."""

from __future__ import annotations

import torch
from fuzz.draw import LAYER_OF, Case

from DCLS import _cpu_rule

#: Modes that ask for no gradient.
_FORWARD_ONLY = ("jvp", "non_finite", "vmap")


def torch_convolves(case: Case) -> bool:
    """Whether torch's own convolution may be the one: not DCLS's direct and im2col ones."""
    layer = LAYER_OF.get(case.get("layer", ""))
    return layer is not None and (layer.transposed or case["method"] != "direct")


def torch_errs(case: Case) -> bool:
    """Whether torch's own convolution may give a wrong gradient of its kernel.

    It is not relied on where a kernel or a stride is larger than the input. There 2.13.0, on a
    processor with AVX-512 and its BF16, returns memory that nobody wrote, or writes beyond its own:

    - ``conv3d`` in bfloat16 and channels_last of an input (2, 17, 1, 9, 8) and a kernel
      (17, 1, 2, 3, 3) with padding 1 and 17 groups;
    - ``conv2d`` in bfloat16 of an input (3, 33, 40, 5) and a kernel (1, 33, 1, 3) with stride
      (3, 6) and padding (0, 1);
    - ``conv2d`` in float32: ``DCLS._cpu_rule.torch_errs`` says when, and when else. ``auto`` keeps
      away from these.

    Nor where it may not end: see ``DCLS._cpu_rule.torch_hangs``.
    """
    if not torch_convolves(case):
        return False
    short = case["dtype"] in ("float16", "bfloat16") or case["mode"] == "autocast"
    depthwise = case.get("groups") == case.get("channels", [0])[0]
    if short and depthwise and case["kernel"][-1] > 13:
        return True  # DCLS._cpu_rule.torch_hangs: with the fuzzer, whatever the layout
    if case["mode"] in _FORWARD_ONLY:
        return False
    spec = LAYER_OF[case["layer"]]
    size, padding = _seen_by_torch(case, transposed=spec.transposed)
    known = _cpu_rule.torch_errs(case["kernel"], size, padding, torch.float32)
    if known and not short and not spec.transposed and case["method"] == "auto":
        return False
    axes = zip(size, case["kernel"], case["stride"], strict=True)
    return known or any(max(kernel, stride) > length for length, kernel, stride in axes)


def _seen_by_torch(case: Case, *, transposed: bool) -> tuple[list[int], list[int]]:
    """The input's size and the padding of torch's convolution."""
    size, padding = case["input"], case["padding"]
    if transposed:  # its output is the input of the convolution that it transposes
        more = zip(case["stride"], case["kernel"], padding, case["output_padding"], strict=True)
        size = [(n - 1) * s + k - 2 * p + o for n, (s, k, p, o) in zip(size, more, strict=True)]
    elif case["padding_mode"] != "zeros":
        size, padding = [n + 2 * p for n, p in zip(size, padding, strict=True)], [0] * len(size)
    return size, padding
