"""Bad input: a clear error that names the argument, what it got and what it takes."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from support import SIGMA_VERSIONS, VERSIONS, make_problem

from DCLS import _C
from DCLS.functional import construct_kernel


def good(version="gauss", size=(5, 6), **options):
    problem = make_problem(version, size, **options)
    return {
        "weight": problem.weight,
        "P": problem.P,
        "SIG": problem.SIG,
        "dilated_kernel_size": problem.size,
        "version": version,
    }


def change(**changes):
    return {**good(), **changes}


BAD = {
    "weight: not a tensor": (change(weight=[1.0]), TypeError, r"weight must be a Tensor, got list"),
    "P: not a tensor": (change(P=None), TypeError, r"P must be a Tensor, got NoneType"),
    "SIG: not a tensor": (change(SIG=1.0), TypeError, r"SIG must be a Tensor or None, got float"),
    "weight: integer": (
        change(weight=torch.ones(3, 2, 4, dtype=torch.int64)),
        TypeError,
        r"weight must have a dtype out of .*float32.*, got torch.int64",
    ),
    "weight: complex": (
        change(weight=torch.ones(3, 2, 4, dtype=torch.complex64)),
        TypeError,
        r"weight must have a dtype",
    ),
    "weight: scalar": (change(weight=torch.ones(())), ValueError, r"weight must have shape"),
    "P: integer": (
        change(P=torch.ones(2, 3, 2, 4, dtype=torch.int64)),
        TypeError,
        r"P must have the dtype of weight, torch.float64, got torch.int64",
    ),
    "P: other dtype": (change(P=torch.ones(2, 3, 2, 4)), TypeError, r"P must have the dtype"),
    "SIG: other dtype": (change(SIG=torch.ones(2, 3, 2, 4)), TypeError, r"SIG must have the dtype"),
    "P: too few axes": (
        change(P=torch.ones(1, 3, 2, 4).double()),
        ValueError,
        r"P must have shape .* = \(2, 3, 2, 4\), got \(1, 3, 2, 4\)",
    ),
    "P: other ndim": (
        change(P=torch.ones(3, 2, 4).double()),
        ValueError,
        r"P must have shape .*got \(3, 2, 4\)",
    ),
    "P: other elements": (
        change(P=torch.ones(2, 3, 2, 5).double()),
        ValueError,
        r"P must have shape",
    ),
    "SIG: other shape": (
        change(SIG=torch.ones(2, 3, 1, 4).double()),
        ValueError,
        r"SIG must have shape .*got \(2, 3, 1, 4\)",
    ),
    "P: other device": (
        change(P=torch.ones(2, 3, 2, 4, device="meta").double()),
        ValueError,
        r"P must be on the device of weight, cpu, got meta",
    ),
    "SIG: other device": (
        change(SIG=torch.ones(2, 3, 2, 4, device="meta").double()),
        ValueError,
        r"SIG must be on the device of weight",
    ),
    "SIG: missing": (
        change(SIG=None),
        ValueError,
        r"SIG must be given for version 'gauss', got None",
    ),
    "SIG: superfluous": (
        change(version="v1"),
        ValueError,
        r"SIG must be None for version 'v1'",
    ),
    "size: zero": (
        change(dilated_kernel_size=(0, 6)),
        ValueError,
        r"dilated_kernel_size must have entries between 1 and 2\*\*24, got \(0, 6\)",
    ),
    "size: negative": (
        change(dilated_kernel_size=(5, -6)),
        ValueError,
        r"dilated_kernel_size must have entries",
    ),
    "size: too large": (
        change(dilated_kernel_size=(5, 2**24 + 1)),
        ValueError,
        r"dilated_kernel_size must have entries",
    ),
    "size: no axis": (
        change(dilated_kernel_size=()),
        ValueError,
        r"dilated_kernel_size must have 1 to 3 entries.*got 0",
    ),
    "size: four axes": (
        change(dilated_kernel_size=(5, 6, 2, 2)),
        ValueError,
        r"dilated_kernel_size must have 1 to 3 entries.*got 4",
    ),
    "size: float": (
        change(dilated_kernel_size=(5.0, 6)),
        TypeError,
        r"dilated_kernel_size must hold ints",
    ),
    "size: bool": (
        change(dilated_kernel_size=(True, 6)),
        TypeError,
        r"dilated_kernel_size must hold ints",
    ),
    "size: str": (
        change(dilated_kernel_size="56"),
        TypeError,
        r"dilated_kernel_size must be an int or a sequence of ints, got '56'",
    ),
    "size: None": (
        change(dilated_kernel_size=None),
        TypeError,
        r"dilated_kernel_size must be .* got None",
    ),
    "version: unknown": (
        change(version="v2"),
        ValueError,
        rf"version must be one of {', '.join(VERSIONS)}, got 'v2'",
    ),
    "version: not a str": (change(version=1), TypeError, r"version must be a str .*got int"),
    "sigma_min: zero": (
        change(sigma_min=0.0),
        ValueError,
        r"sigma_min must be finite and positive, got 0.0",
    ),
    "sigma_min: negative": (change(sigma_min=-1.0), ValueError, r"sigma_min must be finite"),
    "sigma_min: NaN": (change(sigma_min=math.nan), ValueError, r"sigma_min must be finite"),
    "sigma_min: infinite": (change(sigma_min=math.inf), ValueError, r"sigma_min must be finite"),
    "sigma_min: str": (change(sigma_min="1"), TypeError, r"sigma_min must be a float or None"),
    "sigma_min: for v1": (
        {**good("v1"), "sigma_min": 1.0},
        ValueError,
        r"sigma_min must be None for version 'v1', got 1.0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument(case):
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        construct_kernel(**arguments)


@pytest.mark.parametrize("real", ["float16", "float32", "float64", "int64"])
def test_numbers_may_be_numpys(real):
    numpy = pytest.importorskip("numpy")
    p = good("max", (9,))
    tensors = (p["weight"], p["P"], p["SIG"])
    want = construct_kernel(*tensors, dilated_kernel_size=9, version="max", sigma_min=2.0)
    for size in (numpy.int64(9), [numpy.int32(9)]):
        got = construct_kernel(
            *tensors, dilated_kernel_size=size, version="max", sigma_min=getattr(numpy, real)(2)
        )
        assert torch.equal(got, want)
    with pytest.raises(TypeError, match="dilated_kernel_size must be an int or a sequence"):
        construct_kernel(*tensors, dilated_kernel_size=numpy.bool_(True), version="max")
    with pytest.raises(TypeError, match="sigma_min must be a float or None"):
        construct_kernel(*tensors, dilated_kernel_size=9, sigma_min=torch.tensor(1.0))


@pytest.mark.parametrize("version", VERSIONS)
def test_operator_checks_by_itself(version):
    """torch.ops.dcls, called without DCLS.functional, must not read out of bounds either."""
    p = good(version)
    P = p["P"][:, :2]
    with pytest.raises(ValueError, match="P must have shape"):
        torch.ops.dcls.construct_kernel(p["weight"], P, p["SIG"], [5, 6], version, 1.0)
    for grad_kernel, error in (
        (torch.ones(3, 2, 5, 5), ValueError),
        (torch.ones(3, 2, 5, 6), TypeError),
    ):
        with pytest.raises(error, match="grad_kernel must have"):
            torch.ops.dcls.construct_kernel_backward(
                grad_kernel, p["weight"], p["P"], p["SIG"], [5, 6], version, 1.0, [True] * 3
            )


def test_size_that_passes_the_memory():
    """2^62 cells: torch's own out-of-memory error, before any kernel runs."""
    weight, P = torch.ones(2**14, 1), torch.zeros(2, 2**14, 1)
    with pytest.raises(RuntimeError):
        construct_kernel(weight, P, dilated_kernel_size=(2**24, 2**24), version="v1")


def test_more_than_2_to_the_31_cells():
    """64-bit offsets: an element in the last of 2^31 + 2^18 cells arrives there (4 GiB)."""
    rows, size = 8193, 2**18
    weight = torch.zeros(rows, 1, dtype=torch.float16)
    weight[-1] = 3
    P = torch.full((1, rows, 1), 0.0, dtype=torch.float16)
    kernel = construct_kernel(weight, P, dilated_kernel_size=size, version="v1")
    assert kernel.numel() > 2**31
    assert kernel[-1, size // 2] == 3
    assert kernel[-1].count_nonzero() == 1
    assert kernel[-2].count_nonzero() == 0


@settings(max_examples=200, deadline=None)
@given(data=st.data(), version=st.sampled_from(VERSIONS))
def test_any_shapes_give_a_result_or_a_clear_error(data, version):
    shapes = st.lists(st.integers(0, 3), max_size=4)
    weight = torch.zeros(data.draw(shapes))
    P = torch.zeros(data.draw(shapes) if data.draw(st.booleans()) else [2, *weight.shape])
    SIG = torch.zeros(data.draw(shapes)) if data.draw(st.booleans()) else None
    if data.draw(st.booleans()) and version in SIGMA_VERSIONS:
        SIG = torch.zeros_like(P)
    size = data.draw(st.lists(st.integers(-1, 4), max_size=4))
    fits = (
        1 <= len(size) <= 3
        and min(size) >= 1
        and weight.ndim >= 1
        and P.shape == (len(size), *weight.shape)
        and (SIG is not None) == (version in SIGMA_VERSIONS)
        and (SIG is None or SIG.shape == P.shape)
    )
    if fits:
        kernel = construct_kernel(weight, P, SIG, dilated_kernel_size=size, version=version)
        assert kernel.shape == (*weight.shape[:-1], *size)
    else:
        with pytest.raises((ValueError, TypeError), match=r"weight|P|SIG|dilated_kernel_size"):
            construct_kernel(weight, P, SIG, dilated_kernel_size=size, version=version)


class TestBindings:
    """The library checks again, for C++ callers: no null pointer or wild size reaches a kernel."""

    @staticmethod
    def problem(**changes):
        arguments = {
            "version": 3,
            "dtype": 0,
            "size": [5],
            "rows": 1,
            "elements": 1,
            "sigma_min": 0.27,
            "weight": 64,
            "position": 64,
            "sigma": 64,
        }
        given = {**arguments, **changes}
        return _C.ConstructProblem(**{"position_row": list(range(len(given["size"]))), **given})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"version": len(VERSIONS)}, "version"),
            ({"version": -1}, "version"),
            ({"dtype": 9}, "dtype"),
            ({"size": []}, "size"),
            ({"size": [1, 1, 1, 1]}, "size"),
            ({"size": [0]}, r"size\[0\] must be between 1 and 16777216, got 0"),
            ({"size": [5, 2**24 + 1]}, r"size\[1\]"),
            ({"rows": -1}, "rows must be between 0"),
            ({"elements": -1}, "elements"),
            ({"rows": 2**62}, "too large"),
            ({"rows": 2**40, "elements": 2**40}, "too large"),
            ({"weight": 0}, "weight must not be null"),
            ({"position": 0}, "position must not be null"),
            ({"sigma": 0}, "sigma must not be null"),
            ({"version": 0}, "sigma must be null"),
            ({"size": [5, 6], "position_row": [0, 0]}, "position_row must be a permutation"),
            ({"sigma_min": math.nan}, "sigma_min"),
            ({"sigma_min": 0.0}, "sigma_min"),
        ],
        ids=str,
    )
    def test_bad_problem(self, changes, message):
        where = _C.Execution(0, 0, 0, 1)
        with pytest.raises(ValueError, match=message):
            _C.construct(self.problem(**changes), 64, where)

    def test_bad_execution(self):
        for where in ((2, 0, 0, 1), (0, 0, 0, 0), (0, 0, 0, -3), (1, -1, 0, 1)):
            with pytest.raises(ValueError, match=r"device|num_threads"):
                _C.construct(self.problem(), 64, _C.Execution(*where))

    def test_null_output(self):
        where = _C.Execution(0, 0, 0, 1)
        with pytest.raises(ValueError, match="kernel must not be null"):
            _C.construct(self.problem(), 0, where)
        with pytest.raises(ValueError, match="grad_kernel must not be null"):
            _C.construct_backward(self.problem(), 0, 64, 0, 0, where)
        with pytest.raises(ValueError, match=r"grads\.sigma must be null"):
            _C.construct_backward(self.problem(version=1, sigma=0), 64, 64, 0, 64, where)

    def test_cuda_where_there_is_none(self):
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device here")
        with pytest.raises(RuntimeError, match=r"built without CUDA|cudaError"):
            _C.construct(self.problem(), 64, _C.Execution(1, 0, 0, 1))
