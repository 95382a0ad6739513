"""What only a GPU can show: streams, devices, graphs, synchronisation, determinism."""

from __future__ import annotations

import pytest
import torch
from support import VERSIONS, make_problem, relative_error

from DCLS import _C, Dcls2d
from DCLS.functional import construct_kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.skipif(not _C.build_info()["cuda"], reason="this DCLS was built without CUDA"),
]

CASES = [(version, size) for version in VERSIONS for size in ((33,), (17, 17), (5, 6, 7))]


@pytest.mark.parametrize(("version", "size"), CASES, ids=str)
def test_runs_on_the_current_stream(version, size):
    """The inputs are written on a side stream, behind a long wait: another stream would miss it."""
    problem = make_problem(version, size, lead=(64, 8), dtype=torch.float32, device="cuda")
    expected = problem.run()
    delayed = [torch.zeros_like(t) for t in (*problem.inputs, problem.cotangent)]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for target, source in zip(delayed, (*problem.inputs, problem.cotangent), strict=True):
            target.copy_(source.detach())
        inputs = [t.requires_grad_() for t in delayed[:-1]]
        kernel = construct_kernel(*inputs, dilated_kernel_size=size, version=version)
        grads = torch.autograd.grad(kernel, inputs, delayed[-1])
        assert not stream.query()  # neither the launch nor the gradients waited
    stream.synchronize()
    for a, b in zip((kernel, *grads), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device only")
@pytest.mark.parametrize("version", VERSIONS)
def test_runs_on_the_device_of_its_tensors(version):
    first = make_problem(version, (7, 8), device="cuda:0")
    second = make_problem(version, (7, 8), device="cuda:1")
    with torch.cuda.device(0):
        got = second.run()
        assert torch.cuda.current_device() == 0
    for a, b in zip(got, first.run(), strict=True):
        assert a.device.index == 1
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize(("version", "size"), CASES, ids=str)
def test_graph_capture_and_replay(version, size):
    problem = make_problem(version, size, lead=(16, 8), dtype=torch.float32, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up outside of the capture, as torch asks for
        problem.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = problem.run()
    with torch.no_grad():  # other values in the same memory
        problem.weight.mul_(-2)
        problem.P.add_(0.125)
    graph.replay()
    for a, b in zip(captured, problem.run(), strict=True):
        assert torch.equal(a, b)


def test_whole_layer_in_a_graph():
    layer = Dcls2d(32, 32, kernel_count=9, dilated_kernel_size=17, padding=8, groups=32).cuda()
    x = torch.randn(4, 32, 28, 28, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (x,))
    y = torch.randn_like(x)
    torch.testing.assert_close(graphed(y), layer(y))


# torch says so when the mode is first set: an error by then, with the mode left as it is.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize(("version", "size"), CASES, ids=str)
def test_never_synchronises(version, size):
    problem = make_problem(version, size, dtype=torch.float32, device="cuda")
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        problem.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("version", "size"), CASES, ids=str)
def test_bitwise_equal_run_to_run(version, size, dtype):
    problem = make_problem(version, size, lead=(128, 16), elements=9, dtype=dtype, device="cuda")
    first = problem.run()
    for _ in range(3):
        for a, b in zip(problem.run(), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("version", "size"), CASES, ids=str)
def test_agrees_with_the_cpu(version, size):
    on_gpu = make_problem(version, size, lead=(32, 8), device="cuda").run()
    on_cpu = make_problem(version, size, lead=(32, 8)).run()
    for a, b in zip(on_gpu, on_cpu, strict=True):
        assert relative_error(a.cpu(), b) < 1e-12


def test_allocates_the_result_only():
    problem = make_problem("gauss", (17, 17), lead=(128, 128), elements=9, dtype=torch.float32)
    inputs = [t.detach().cuda() for t in problem.inputs]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernel = construct_kernel(*inputs, dilated_kernel_size=(17, 17))
    size = kernel.numel() * kernel.element_size()
    assert torch.cuda.max_memory_allocated() - before <= size + 2**21  # torch's granularity


def test_more_than_2_to_the_31_cells():
    if torch.cuda.get_device_properties(0).total_memory < 16 * 2**30:
        pytest.skip("takes 8 GiB of GPU memory")
    rows, size = 8193, 2**18
    weight = torch.zeros(rows, 1, dtype=torch.float16, device="cuda")
    weight[-1] = 3
    P = torch.zeros(1, rows, 1, dtype=torch.float16, device="cuda", requires_grad=True)
    kernel = construct_kernel(weight, P, dilated_kernel_size=size, version="v0")
    assert kernel[-1, size // 2] == 3
    assert kernel[-1].count_nonzero() == 1
    grad_kernel = torch.zeros_like(kernel)
    grad_kernel[-1, size // 2 + 1] = 1
    (grad,) = torch.autograd.grad(kernel, P, grad_kernel)
    assert grad[0, -1] == 3
    assert grad.count_nonzero() == 1


def test_error_names_the_kernel():
    """A stream that is none: the launch fails, and the process lives on."""
    problem = _C.ConstructProblem(1, 0, [5], 1, 1, 0.0, 64, 64, 0)
    with pytest.raises(RuntimeError, match=r"cudaSetDevice failed: cudaErrorInvalidDevice"):
        _C.construct(problem, 64, _C.Execution(1, 4096, 0, 1))
    make_problem("gauss", (5,), device="cuda").run()
