"""im2col and its convolution: values and gradients."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from im2col_problem import (
    assert_matches_reference,
    assert_same,
    make_im2col,
    results,
)
from support import VERSIONS
from torch.profiler import ProfilerActivity, profile

from DCLS._native import pieces as _im2col_pieces
from DCLS.functional import construct_kernel, im2col, im2col_conv

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

#: Input, grid, stride, padding: rows shorter and longer than a vector, even grids, grids larger
#: than the input, one pixel, strides larger than the grid, more padding than input.
SHAPES = [
    ((20,), (7,), (1,), (3,)),
    ((9,), (6,), (2,), (1,)),
    ((67,), (9,), (3,), (8,)),
    ((700,), (33,), (1,), (16,)),
    ((1,), (1,), (1,), (0,)),
    ((40,), (2,), (5,), (9,)),
    ((12, 13), (5, 7), (1, 1), (2, 3)),
    ((12, 13), (4, 7), (2, 3), (2, 0)),
    ((20, 31), (9, 7), (1, 1), (4, 3)),
    ((5, 40), (9, 3), (1, 1), (4, 1)),
    ((1, 1), (3, 3), (1, 1), (1, 1)),
    ((3, 4), (31, 33), (1, 1), (15, 20)),
    ((17, 5), (1, 5), (4, 1), (0, 2)),
    ((6, 7, 20), (3, 5, 4), (1, 1, 1), (1, 2, 3)),
    ((6, 7, 8), (3, 5, 4), (2, 1, 2), (1, 2, 3)),
    ((1, 2, 3), (5, 4, 3), (1, 2, 1), (2, 3, 4)),
]


@pytest.mark.sanitizer
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(version, shape, device):
    assert_matches_reference(make_im2col(version, *shape, device=device), 1e-10)
    assert_matches_reference(make_im2col(version, *shape, dtype=torch.float32, device=device), 1e-4)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_construct_with_shared_positions(version, ndim, groups, device):
    """The dense kernel of our own other method, and torch's convolution."""
    size, length = (7, 6, 5)[:ndim], (9, 8, 10)[:ndim]
    problem = make_im2col(version, length, size, groups=groups, out_channels=8, device=device)
    got = results(problem.conv(), problem.tensors)

    def shared(rows):
        if rows is None:
            return None
        of_groups = rows.unflatten(1, (groups, 4 // groups))
        return of_groups.repeat_interleave(8 // groups, 1)

    kernel = construct_kernel(
        problem.weight,
        shared(problem.P),
        shared(problem.SIG),
        dilated_kernel_size=size,
        version=version,
    )
    convolution = (F.conv1d, F.conv2d, F.conv3d)[ndim - 1]
    output = convolution(
        problem.input, kernel, problem.bias, padding=problem.padding, groups=groups
    )
    assert_same(got, results(output, problem.tensors), 1e-10)


GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "deform_conv2d.npz")


@pytest.mark.parametrize("case", sorted({key.split("/")[0] for key in GOLDEN if "/" in key}))
def test_v0_equals_deformable_convolution(case, device):
    """By torchvision, with offsets that are constant over space: see golden/make_deform_conv.py."""

    def array(name):
        return torch.from_numpy(GOLDEN[f"{case}/{name}"]).to(device)

    names = ("input", "weight", "bias", "P")
    tensors = {name: array(name).requires_grad_() for name in names}
    output = im2col_conv(
        *tensors.values(),
        dilated_kernel_size=array("grid").tolist(),
        stride=array("stride").tolist(),
        padding=array("padding").tolist(),
        groups=array("groups").item(),
        version="v0",
    )
    grads = torch.autograd.grad(output, list(tensors.values()), array("cotangent"))
    want = {"output": array("output"), **{name: array(f"grad_{name}") for name in names}}
    assert_same({"output": output, **dict(zip(names, grads, strict=True))}, want, 1e-10)


def test_golden_data_is_there():
    assert len({key.split("/")[0] for key in GOLDEN if "/" in key}) == 5


@settings(max_examples=80, deadline=None)
@given(
    version=st.sampled_from(VERSIONS),
    axes=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 9)),
        min_size=1,
        max_size=3,
    ),
    batch=st.integers(0, 3),
    groups=st.integers(1, 2),
    elements=st.integers(1, 4),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    workspace=st.sampled_from([None, 200, 1000, 5000]),
    seed=st.integers(0, 2**31),
)
# A single grid point sees an element, with a tap of 0.08: of its derivative rounding is left.
@example(
    version="v1",
    axes=[(5, 6, 1, 1)],
    batch=3,
    groups=1,
    elements=1,
    dtype=torch.float32,
    workspace=None,
    seed=1252,
)
def test_random_shapes(version, axes, batch, groups, elements, dtype, workspace, seed):
    # Wide enough for one output at least.
    axes = [(max(n, s - 2 * p), s, step, p) for n, s, step, p in axes]
    problem = make_im2col(
        version,
        *zip(*axes, strict=True),
        batch=batch,
        groups=groups,
        channels=2 * groups,
        out_channels=3 * groups,
        elements=elements,
        dtype=dtype,
        seed=seed,
    )
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    with torch.no_grad():
        problem.P.clamp_(-9, 9)  # far outside, float32 knows a normalised element's gradient ill
    assert_matches_reference(problem, tolerance, workspace=workspace)


@pytest.mark.sanitizer
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", ["low", "float32"])
def test_sixteen_bit_types(version, low, positions, device):
    """Columns are computed in float32 and rounded once; positions may stay float32."""
    problem = make_im2col(version, (9, 20), (5, 7), dtype=low, device=device)
    if positions == "float32":
        problem = problem.to(low, torch.float32)
        with torch.no_grad():
            problem.P.add_(2**-12)  # no 16-bit type resolves this at a position of 1
    exact = problem.to(torch.float32)
    columns, want = problem.columns(), exact.columns()
    assert columns.dtype == low
    eps = torch.finfo(low).eps
    torch.testing.assert_close(columns, want.to(low), rtol=eps, atol=0)
    got = results(problem.conv(), problem.tensors)
    assert got["P"].dtype == problem.P.dtype
    expected = results(exact.conv(), exact.tensors)
    assert_same(got, expected, 6 * eps)


def test_float32_positions_matter_to_a_sixteen_bit_input(device):
    """A position that bfloat16 would round is not rounded."""
    problem = make_im2col("v1", (30,), (21,), elements=1, dtype=torch.bfloat16, device=device)
    problem = problem.to(torch.bfloat16, torch.float32)
    with torch.no_grad():
        problem.P.fill_(8.25 + 1 / 64)
        problem.input.copy_(torch.arange(30.0).expand_as(problem.input))
    column = problem.columns()[0, 0, 0]
    slope = problem.to(torch.float64).columns()[0, 0, 0]
    torch.testing.assert_close(column.double(), slope, rtol=2**-8, atol=0)
    rounded = problem.to(torch.bfloat16).columns()[0, 0, 0]
    assert not torch.equal(column, rounded)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("workspace", [200, 1000, 4000, 20000])
def test_workspace_changes_nothing(ndim, workspace, device):
    """Cut by items, channels, and outputs on every axis."""
    problem = make_im2col(
        "gauss", (11, 6, 5)[:ndim], (5, 4, 3)[:ndim], batch=3, groups=2, device=device
    )
    whole = results(problem.conv(workspace=1 << 30), problem.tensors)
    assert_same(results(problem.conv(workspace=workspace), problem.tensors), whole, 1e-12)
    low = problem.to(torch.bfloat16)
    got = results(low.conv(workspace=workspace), low.tensors)
    assert_same(got, results(low.conv(workspace=1 << 30), low.tensors), 0.02)


def test_pieces_keep_to_the_workspace():
    for batch, lanes, block, outputs, lane_bytes, workspace in [
        (8, 64, 64, (56, 56), 36, 8 << 20),
        (8, 64, 64, (56, 56), 36, 100_000),
        (3, 12, 4, (7, 9, 11), 24, 5000),
        (3, 12, 4, (7, 9, 11), 24, 25),
        (1, 1, 1, (100,), 8, 64),
        (2, 6, 3, (5, 5), 10, 1_000_000),
        (5, 8, 2, (10,), 10, 650),
    ]:
        ranges, chosen, boxes = _im2col_pieces.cut(
            batch, lanes, outputs, lane_bytes, workspace, block
        )
        assert [i for r in ranges for i in r] == list(range(batch))
        assert [i for r in chosen for i in r] == list(range(lanes))
        cells = [cell for box in boxes for cell in np.ndindex(*(len(r) for r in box))]
        assert len(cells) == np.prod(outputs)
        largest = max(map(len, ranges)) * max(map(len, chosen)) * lane_bytes
        assert largest * max(np.prod([len(r) for r in box]) for box in boxes) <= workspace
        for r in chosen:  # whole blocks, or within one
            whole = r.start % block == 0 and r.stop % block == 0
            assert whole or r.start // block == (r.stop - 1) // block


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_non_finite_position_makes_its_column_nan(version, bad, ndim, device):
    problem = make_im2col(version, (9, 8, 7)[:ndim], (7, 6, 5)[:ndim], device=device)
    finite = results(problem.columns(), problem.column_tensors)
    with torch.no_grad():
        problem.P[-1, 1, 2] = bad
    got = results(problem.columns(), problem.column_tensors)
    assert got["output"][:, 1, 2].isnan().all()
    assert got["input"][:, 1].isnan().all()
    for name in got.keys() - {"output", "input"}:
        assert got[name][:, 1, 2].isnan().all()
        got[name][:, 1, 2] = finite[name][:, 1, 2]
    got["output"][:, 1, 2] = finite["output"][:, 1, 2]
    got["input"][:, 1] = finite["input"][:, 1]
    for name, value in got.items():
        assert torch.equal(value, finite[name]), name
    assert problem.conv().isnan().any()


@pytest.mark.parametrize("version", VERSIONS)
def test_position_far_outside_samples_nothing(version, device):
    problem = make_im2col(version, (9, 8), (5, 6), device=device)
    with torch.no_grad():
        problem.P[1, 0] = torch.tensor([1e4, 1e30, -3e38], device=device)
        if problem.SIG is not None:
            problem.SIG.clamp_(-1, 1)
    got = results(problem.columns(), problem.column_tensors)
    assert got["output"][:, 0].count_nonzero() == 0
    assert got["P"][:, 0].count_nonzero() == 0
    assert all(value.isfinite().all() for value in got.values())


@pytest.mark.native
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_bitwise_equal_for_any_number_of_threads(version, dtype):
    problems = [
        make_im2col(version, (30, 31), (9, 9), batch=11, channels=6, elements=5, dtype=dtype),
        make_im2col(version, (5000,), (25,), batch=1, channels=1, groups=1, dtype=dtype),
    ]
    threads = torch.get_num_threads()
    for problem in problems:
        try:
            found = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                found.append(results(problem.columns(), problem.column_tensors))
        finally:
            torch.set_num_threads(threads)
        for other in found[1:]:
            for name, value in other.items():
                assert torch.equal(value, found[0][name]), name


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_can_be_left_out(version, device):
    """Each subset of the gradients equals the same ones of the full set."""
    problem = make_im2col(version, (9, 8), (5, 6), device=device)
    for run, tensors in (
        (problem.columns, problem.column_tensors),
        (problem.conv, problem.tensors),
    ):
        full = results(run(), tensors)
        for name in tensors:
            for other, tensor in tensors.items():
                tensor.requires_grad_(other == name)
            got = results(run(), {name: tensors[name]})
            torch.testing.assert_close(got[name], full[name], rtol=1e-13, atol=1e-13)
            assert torch.equal(got["output"], full["output"])
        for tensor in tensors.values():
            tensor.requires_grad_()


@pytest.mark.native
def test_non_contiguous_tensors(device):
    problem = make_im2col("gauss", (9, 8), (5, 6), device=device)
    plain = results(problem.conv(), problem.tensors)
    for name, tensor in problem.tensors.items():
        strided = tensor.detach().transpose(0, -1).contiguous().transpose(0, -1)
        setattr(problem, name, strided.requires_grad_())
    assert not problem.input.is_contiguous()
    assert_same(results(problem.conv(), problem.tensors), plain, 0)
    last = problem.input.detach().contiguous(memory_format=torch.channels_last)
    problem.input = last.requires_grad_()
    assert_same(results(problem.conv(), problem.tensors), plain, 0)


def test_gradient_that_is_expanded_or_strided(device):
    problem = make_im2col("gauss", (9, 8), (5, 6), device=device)
    (expanded,) = torch.autograd.grad(problem.conv().sum(), problem.P)
    output = problem.conv()
    (dense,) = torch.autograd.grad(output, problem.P, torch.ones_like(output))
    assert torch.equal(expanded, dense)


def test_empty(device):
    """No items, no channels, no elements: zeros and bias, and gradients of the right shapes."""
    for batch, channels, elements in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        problem = make_im2col(
            "gauss",
            (9, 8),
            (5, 6),
            batch=batch,
            channels=channels,
            elements=elements,
            groups=1,
            device=device,
        )
        got = results(problem.conv(), problem.tensors)
        bias = problem.bias.detach().reshape(1, -1, 1, 1)
        assert torch.equal(got["output"], bias.expand_as(got["output"]))
        for name, tensor in problem.tensors.items():
            assert got[name].shape == tensor.shape
            assert name == "bias" or got[name].count_nonzero() == 0


def test_padding_by_name(device):
    problem = make_im2col("gauss", (9, 8), (5, 6), device=device)
    same = problem.conv(padding="same")
    assert same.shape[2:] == (9, 8)
    padded = F.pad(problem.input, (2, 3, 2, 2))
    problem_padded = im2col_conv(
        padded,
        problem.weight,
        problem.bias,
        problem.P,
        problem.SIG,
        dilated_kernel_size=(5, 6),
        groups=2,
    )
    torch.testing.assert_close(same, problem_padded, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.conv(padding="valid"), problem.conv(padding=0))


def test_sigma_min(device):
    problem = make_im2col("gauss", (9, 8), (5, 6), device=device)
    wide = im2col(
        problem.input, problem.P, problem.SIG, dilated_kernel_size=(5, 6), sigma_min=1.27, padding=2
    )
    shifted = im2col(
        problem.input, problem.P, problem.SIG.abs() + 1, dilated_kernel_size=(5, 6), padding=2
    )
    torch.testing.assert_close(wide, shifted)
    assert not torch.allclose(wide, problem.columns(padding=2))


def test_no_kernel_is_built():
    """The dense kernel would take 16 GB."""
    problem = make_im2col(
        "v1",
        (20, 21),
        (999, 999),
        padding=(499, 499),
        batch=1,
        channels=64,
        out_channels=64,
        groups=1,
        dtype=torch.float32,
    )
    with torch.no_grad():
        problem.P.clamp_(-9, 9)
    got = results(problem.conv(), problem.tensors)
    # The same elements in a grid that is as large as it need be.
    problem.size, problem.padding = (21, 21), (10, 10)
    assert_same(got, results(problem.conv(), problem.tensors), 1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_images_are_multiplied_together(groups):
    """A GPU waits for each product: there are as many for one image as for several."""

    counts = []
    for batch in (1, 5):
        problem = make_im2col("v1", (9, 8), (5, 6), batch=batch, groups=groups)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            results(problem.conv(), problem.tensors)
        names = [event.name for event in found.events()]
        counts.append(names.count("aten::bmm") + names.count("aten::baddbmm_"))
    assert counts == [3, 3]
