"""Cases in which torch's own convolution computes, and those in which it is known to be wrong."""

from __future__ import annotations

import torch
from fuzz.draw import LAYER_OF, Case

from DCLS import _cpu_rule


def torch_convolves(case: Case) -> bool:
    """Whether torch's own convolution may be the one: not DCLS's direct and im2col ones."""
    layer = LAYER_OF.get(case.get("layer", ""))
    return layer is not None and (layer.transposed or case["method"] != "direct")


def torch_errs(case: Case) -> bool:
    """Whether torch's own convolution may give a wrong gradient of its kernel.

    Of bfloat16 volumes with fewer slices than the kernel, in channels_last, it returns memory that
    nobody wrote (2.13.0 on a processor with AVX-512 BF16): ``conv3d`` of an input (2, 17, 1, 9, 8)
    and a kernel (17, 1, 2, 3, 3) with padding 1 and 17 groups, for example. Of planes in float32,
    ``DCLS._cpu_rule.torch_errs`` says more: ``auto`` keeps away from these.
    """
    if not torch_convolves(case):
        return False
    low = case["dtype"] == "bfloat16" or case["mode"] == "autocast"
    if low and len(case["input"]) == 3 and case["input"][0] < max(case["kernel"]):
        return True
    spec = LAYER_OF[case["layer"]]
    asks = not spec.transposed and case["method"] == "auto"
    return not asks and _is_in_the_rule(case, transposed=spec.transposed)


def _is_in_the_rule(case: Case, *, transposed: bool) -> bool:
    size, padding = case["input"], case["padding"]
    if transposed:  # its output is the input of the convolution that it transposes
        more = zip(case["stride"], case["kernel"], padding, case["output_padding"], strict=True)
        size = [(n - 1) * s + k - 2 * p + o for n, (s, k, p, o) in zip(size, more, strict=True)]
    elif case["padding_mode"] != "zeros":
        size, padding = [n + 2 * p for n, p in zip(size, padding, strict=True)], [0] * len(size)
    return _cpu_rule.torch_errs(case["kernel"], size, padding, torch.float32)
