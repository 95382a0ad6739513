"""Runs every kernel of the library once: each operator, dtype, version and number of dimensions.

    compute-sanitizer --tool memcheck python scripts/gpu_kernels.py

Made to run under compute-sanitizer, so the shapes are small and torch's own kernels have no part:
inputs are made on the CPU and copied (which initcheck counts as initialised), results are
copied back and compared there with the float64 reference. The comparison is only a safeguard that
the kernels did their work; the tests proper are in tests/.

``--device cpu`` runs the same on the CPU. An operator of ``torch.ops.dcls`` that has no entry in
:data:`OPERATORS` is an error, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator

# Every tensor gets memory of its own, so that memcheck sees where it ends. Before CUDA is started.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS import reference
from DCLS._spec import SIGMA_VERSIONS, VERSIONS
from DCLS.functional import construct_kernel, direct_conv, im2col, im2col_conv

#: Largest norm-wise error against the reference.
TOLERANCES = {
    torch.float32: 1e-5,
    torch.float64: 1e-10,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}

#: Of each number of dimensions: kernel size, rows, elements. One small problem, and one that takes
#: several blocks and no multiple of their sizes.
CONSTRUCT_PROBLEMS = (
    ((7,), 5, 3),
    ((1030,), 2, 3),
    ((6, 5), 5, 3),
    ((40, 41), 2, 5),
    ((3, 4, 5), 5, 3),
    ((11, 12, 13), 2, 2),
)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of ``expected``."""
    return ((got.double() - expected).norm() / expected.norm()).item()


def run_construct(device: str) -> Iterator[tuple[str, float]]:
    """Forward and backward of the construct operator; yields a name and error over tolerance."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    for (size, rows, elements), version, (dtype, tolerance) in itertools.product(
        CONSTRUCT_PROBLEMS, VERSIONS, TOLERANCES.items()
    ):
        values = [normal(rows, elements), normal(len(size), rows, elements)]
        if version in SIGMA_VERSIONS:
            values.append(normal(len(size), rows, elements))
        # Rounded first: the reference is given the very same numbers.
        values = [value.to(dtype) for value in values]
        cotangent = normal(rows, *size).to(dtype)

        def results(
            function: Callable[..., Tensor],
            inputs: list[Tensor],
            cotangent: Tensor,
            size: tuple[int, ...] = size,
            version: str = version,
        ) -> list[Tensor]:
            inputs = [tensor.requires_grad_() for tensor in inputs]
            kernel = function(*inputs, dilated_kernel_size=size, version=version)
            grads = torch.autograd.grad(kernel, inputs, cotangent)
            return [tensor.detach().cpu() for tensor in (kernel, *grads)]

        # clone(), because to() hands back the tensor itself where it is the right one already
        got = results(
            construct_kernel,
            [value.clone().to(device) for value in values],
            cotangent.to(device),
        )
        expected = results(
            reference.construct_kernel,
            [value.clone().double() for value in values],
            cotangent.double(),
        )
        errors = [relative_error(a, b) for a, b in zip(got, expected, strict=True)]
        shape = "x".join(map(str, size))
        yield f"construct {shape} {version} {dtype}", max(errors) / tolerance


def run_support(device: str) -> Iterator[tuple[str, float]]:
    """The support of the construct operator against the cells that the kernel reaches."""
    generator = torch.Generator().manual_seed(0)
    for (size, rows, elements), version, dtype in itertools.product(
        CONSTRUCT_PROBLEMS, VERSIONS, TOLERANCES
    ):
        shape = (len(size), rows, elements)
        P = (torch.randn(shape, generator=generator) * 2).to(dtype)
        SIG = torch.full(shape, 0.125, dtype=dtype) if version in SIGMA_VERSIONS else None
        kernel, support = construct_kernel(
            torch.ones(shape[1:], dtype=dtype).to(device),
            P.to(device),
            None if SIG is None else SIG.to(device),
            dilated_kernel_size=size,
            version=version,
            return_support=True,
        )
        # Off the grid points, where derivatives vanish with the taps. A tap may be too small for
        # the 16-bit types.
        reached, support = kernel.cpu() != 0, support.cpu()
        wrong = (reached & ~support) if dtype.itemsize == 2 else (reached != support)
        yield f"support {'x'.join(map(str, size))} {version} {dtype}", 2.0 * bool(wrong.any())


#: Channels, groups and input size, then kernel size, stride, padding and dilation of each axis.
#: Lines and planes, phases and dilations, one tile and several, depthwise, grouped and dense.
CONV_PROBLEMS = (
    ((3, 3, 3), (40,), (9,), (1,), (4,), (1,)),
    ((4, 6, 2), (700,), (25,), (2,), (12,), (1,)),
    ((10, 10, 10), (15, 16), (7, 5), (1, 1), (3, 2), (1, 1)),
    ((2, 2, 2), (61, 130), (9, 11), (1, 1), (4, 5), (1, 1)),
    ((6, 4, 2), (9, 8), (3, 4), (2, 3), (1, 2), (1, 2)),
    ((2, 4, 1), (5, 6, 7), (3, 3, 2), (1, 2, 1), (1, 1, 1), (2, 1, 1)),
)


def run_direct_conv(device: str) -> Iterator[tuple[str, float]]:
    """Output and gradients of the direct convolution, in both layouts."""
    generator = torch.Generator().manual_seed(0)
    convolutions = (F.conv1d, F.conv2d, F.conv3d)
    formats = (None, torch.channels_last, torch.channels_last_3d)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    for problem, (dtype, tolerance), last in itertools.product(
        CONV_PROBLEMS, TOLERANCES.items(), (False, True)
    ):
        (channels, out_channels, groups), size, kernel_size, stride, padding, dilation = problem
        memory_format = formats[len(size) - 1] if last else torch.contiguous_format
        if memory_format is None:
            continue
        kernel = normal(out_channels, channels // groups, *kernel_size)
        support = torch.rand(kernel.shape, generator=generator) < 0.4
        x, kernel, bias = (
            tensor.to(dtype)
            for tensor in (normal(2, channels, *size), kernel * support, normal(out_channels))
        )
        geometry = (stride, padding, dilation, groups)
        exact = [tensor.double().requires_grad_() for tensor in (x, kernel, bias)]
        output = convolutions[len(size) - 1](*exact, *geometry)
        cotangent = normal(*output.shape).to(dtype)
        grads = list(torch.autograd.grad(output, exact, cotangent.double()))
        grads[1] = grads[1] * support
        inputs = [
            x.to(device).contiguous(memory_format=memory_format).requires_grad_(),
            kernel.to(device).requires_grad_(),
            bias.to(device).requires_grad_(),
        ]
        got = direct_conv(*inputs, *geometry, support=support.to(device))
        back = cotangent.to(device).contiguous(memory_format=memory_format)
        results = [got, *torch.autograd.grad(got, inputs, back)]
        errors = [
            relative_error(a.detach().cpu(), b.detach())
            for a, b in zip(results, (output, *grads), strict=True)
        ]
        shape = "x".join(map(str, size))
        yield f"direct_conv {shape} {memory_format} {dtype}", max(errors) / tolerance


#: Input, kernel size, stride: a small problem, and one of several blocks, for each number of axes.
IM2COL_PROBLEMS = (
    ((9,), (5,), (2,)),
    ((700,), (33,), (1,)),
    ((6, 7), (4, 5), (1, 2)),
    ((20, 31), (9, 7), (1, 1)),
    ((4, 5, 6), (3, 4, 3), (1, 1, 1)),
    ((7, 8, 9), (3, 5, 3), (2, 1, 1)),
)


def im2col_results(
    values: list[Tensor], columns: Callable[..., Tensor], convolve: Callable[..., Tensor]
) -> list[Tensor]:
    """Columns, output, and the gradients of both, on the CPU."""
    leaves = [value.requires_grad_() for value in values]
    found = []
    for function, used in ((columns, [leaves[0], *leaves[3:]]), (convolve, leaves)):
        output = function(*used)
        cotangent = torch.linspace(-1, 1, output.numel()).to(torch.bfloat16)
        cotangent = cotangent.reshape(output.shape).to(output.dtype).to(output.device)
        found += [output, *torch.autograd.grad(output, used, cotangent)]
    return [tensor.detach().cpu() for tensor in found]


def run_im2col(device: str) -> Iterator[tuple[str, float]]:
    """Forward and backward of im2col and of its convolution, which runs in pieces."""
    generator = torch.Generator().manual_seed(0)
    for (length, size, stride), version, (dtype, tolerance) in itertools.product(
        IM2COL_PROBLEMS, VERSIONS, TOLERANCES.items()
    ):
        rows = (len(size), 4, 3)
        shapes = [(2, 4, *length), (6, 2, 3), (6,), *([rows] * (1 + (version in SIGMA_VERSIONS)))]
        # Rounded first: the reference is given the very same numbers.
        values = [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in shapes
        ]
        options = {"dilated_kernel_size": size, "stride": stride, "version": version}
        padding = [n // 2 for n in size]
        sides = {"padding": [side for n in padding for side in (n, n)]}
        got = im2col_results(
            [value.clone().to(device) for value in values],
            functools.partial(im2col, padding=padding, **options),
            functools.partial(im2col_conv, padding=padding, groups=2, workspace=2000, **options),
        )
        want = im2col_results(
            [value.clone().double() for value in values],
            functools.partial(reference.im2col, **sides, **options),
            functools.partial(reference.im2col_conv, groups=2, **sides, **options),
        )
        errors = [relative_error(a, b) for a, b in zip(got, want, strict=True)]
        # Gradients of positions cancel, and 16-bit columns are rounded before they are multiplied.
        yield f"im2col {'x'.join(map(str, length))} {version} {dtype}", max(errors) / tolerance / 10


#: What runs an operator of ``torch.ops.dcls``.
OPERATORS: dict[str, Callable[[str], Iterator[tuple[str, float]]]] = {
    "construct_kernel": run_construct,
    "construct_kernel_backward": run_construct,
    "construct_support": run_support,
    "direct_conv": run_direct_conv,
    "direct_conv_backward": run_direct_conv,
    "im2col": run_im2col,
    "im2col_backward": run_im2col,
    "im2col_conv": run_im2col,
    "im2col_conv_backward": run_im2col,
}


def registered_operators() -> set[str]:
    """Names of the operators that the package has registered under ``dcls``."""
    names = torch._C._dispatch_get_all_op_names()
    return {
        name.removeprefix("dcls::").split(".")[0] for name in names if name.startswith("dcls::")
    }


def main() -> int:
    """Runs all; returns the exit status: 1 if results are wrong or an operator is left out."""
    parser = argparse.ArgumentParser(description="Runs every kernel of the library once.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--only",
        choices=("construct", "direct_conv", "im2col"),
        help="the operators whose names begin so (default: all)",
    )
    options = parser.parse_args()
    device = options.device

    operators = registered_operators()
    if operators != set(OPERATORS):
        left_out, unknown = sorted(operators - set(OPERATORS)), sorted(set(OPERATORS) - operators)
        print(f"operators without an entry: {left_out}; entries without an operator: {unknown}")
        return 1
    count = wrong = 0
    chosen = [run for name, run in OPERATORS.items() if name.startswith(options.only or "")]
    for run in dict.fromkeys(chosen):
        for name, error in run(device):
            count += 1
            if not error <= 1:
                wrong += 1
                print(f"{name}: the error is {error:.3g} times the tolerance")
    print(f"{count} problems forward and backward on {device}, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
