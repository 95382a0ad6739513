"""Writes deform_conv2d.npz: deformable convolutions by torchvision, for tests/test_im2col.py.

    python tests/golden/make_deform_conv.py

Needs torchvision, which no test needs. Offsets are constant over space, which is what im2col with
``v0`` computes: output channel and batch share them, each input channel has its own.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.ops import deform_conv2d

#: Name: batch, in_channels, out_channels, groups, input, elements (as rows x columns, which is how
#: torchvision lays out weights), grid, stride, padding.
CASES = {
    "plain": (2, 3, 4, 1, (9, 11), (2, 3), (5, 7), (1, 1), (2, 3)),
    "groups": (2, 4, 6, 2, (8, 8), (1, 5), (7, 7), (1, 1), (3, 3)),
    "strides": (1, 2, 3, 1, (13, 10), (3, 3), (5, 3), (2, 3), (1, 0)),
    "depthwise": (2, 5, 5, 5, (6, 7), (1, 4), (9, 9), (1, 1), (4, 4)),
    "kernel larger than the input": (1, 2, 2, 1, (3, 4), (3, 3), (13, 11), (1, 1), (6, 5)),
}


def offsets(
    P: torch.Tensor, elements: tuple[int, int], grid: tuple[int, int], shape: tuple[int, ...]
):
    """Turns positions (2, I, K) into torchvision's offsets (N, I * K * 2, *outputs).

    torchvision samples element (r, c) of channel i at output * stride - padding + (r, c) + offset;
    DCLS samples element k at output * stride - padding + grid // 2 + P.
    """
    rows, columns = (
        t.flatten() for t in torch.meshgrid(*map(torch.arange, elements), indexing="ij")
    )
    down = P[0] + grid[0] // 2 - rows
    right = P[1] + grid[1] // 2 - columns
    both = torch.stack([down, right], -1).flatten()  # channel, element, axis
    return both.reshape(1, -1, 1, 1).expand(shape[0], -1, *shape[1:])


def main() -> None:
    torch.manual_seed(0)
    arrays: dict[str, np.ndarray] = {"torchvision": np.array(torchvision.__version__)}
    for name, (batch, inputs, outs, groups, size, elements, grid, stride, padding) in CASES.items():
        K = elements[0] * elements[1]
        x = torch.randn(batch, inputs, *size, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(outs, inputs // groups, K, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(outs, dtype=torch.float64, requires_grad=True)
        # Within the grid and off the grid points: there torchvision's gradients are another choice.
        limits = torch.tensor(grid, dtype=torch.float64).reshape(2, 1, 1) // 2 - 0.05
        P = (torch.rand(2, inputs, K, dtype=torch.float64) * 2 - 1) * limits
        P = P.floor() + (P - P.floor()).clamp(0.05, 0.95)
        P = P.clamp(-limits, limits).requires_grad_()
        outputs = [
            (length + 2 * p - s) // step + 1
            for length, p, s, step in zip(size, padding, grid, stride, strict=True)
        ]
        # torchvision takes the number of outputs from the size of its own kernel: pad at the end.
        ends = [
            (out - 1) * step + e - length - p
            for out, step, e, length, p in zip(
                outputs, stride, elements, size, padding, strict=True
            )
        ]
        far = [max(p, end) + max(grid) for p, end in zip(padding, ends, strict=True)]
        # Zeros around, so that the sampling never meets torchvision's own border.
        padded = torch.nn.functional.pad(x, (far[1], far[1], far[0], far[0]))
        # Its own padding stays 0: the shift to our first output goes into the offsets.
        shift = torch.tensor([far[0] - padding[0], far[1] - padding[1]]).reshape(2, 1, 1)
        room = [length + 2 * f for length, f in zip(size, far, strict=True)]
        own = [(r - e) // s + 1 for r, e, s in zip(room, elements, stride, strict=True)]
        output = deform_conv2d(
            padded,
            offsets(P + shift, elements, grid, (batch, *own)),
            weight.reshape(outs, inputs // groups, *elements),
            bias,
            stride=stride,
        )[..., : outputs[0], : outputs[1]]
        cotangent = torch.randn_like(output)
        tensors = {"input": x, "weight": weight, "bias": bias, "P": P}
        grads = torch.autograd.grad(output, list(tensors.values()), cotangent)
        found = {**tensors, "output": output, "cotangent": cotangent}
        found |= {f"grad_{key}": grad for key, grad in zip(tensors, grads, strict=True)}
        for key, tensor in found.items():
            arrays[f"{name}/{key}"] = tensor.detach().numpy()
        for key, value in (("grid", grid), ("stride", stride), ("padding", padding)):
            arrays[f"{name}/{key}"] = np.array(value)
        arrays[f"{name}/groups"] = np.array(groups)
    path = Path(__file__).with_name("deform_conv2d.npz")
    np.savez_compressed(path, **arrays)
    logging.info("%s: %d bytes, %d cases", path, path.stat().st_size, len(CASES))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
