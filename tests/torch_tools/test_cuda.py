"""What only a GPU can show: streams, devices, graphs, synchronisation, determinism."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from im2col_problem import make_im2col
from support import VERSIONS, make_problem, relative_error
from torch import Tensor

from DCLS import _C, Dcls2d
from DCLS.functional import construct_kernel, direct_conv, im2col_conv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.skipif(not _C.build_info()["cuda"], reason="this DCLS was built without CUDA"),
]

CASES = [(version, size) for version in VERSIONS for size in ((33,), (17, 17), (5, 6, 7))]


@dataclass
class Task:
    """A differentiable operator, its inputs, and the gradient that comes back to its output."""

    function: Callable[..., Tensor]
    inputs: list[Tensor]
    cotangent: Tensor
    exact: bool = True  #: whether it gives the same bits on every stream

    def run(self) -> tuple[Tensor, ...]:
        """The output, and the gradients of the inputs."""
        output = self.function(*self.inputs)
        return output, *torch.autograd.grad(output, self.inputs, self.cotangent)

    def assert_same(self, got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Compares two runs."""
        for a, b in zip(got, expected, strict=True):
            if self.exact:
                assert torch.equal(a, b)
            else:
                assert relative_error(a, b) < 1e-5


def construct_task(
    version: str, size: tuple[int, ...], dtype: torch.dtype, device: str = "cuda"
) -> Task:
    problem = make_problem(version, size, (128, 16), 9, dtype, device)

    def function(*inputs: Tensor) -> Tensor:
        return construct_kernel(*inputs, dilated_kernel_size=size, version=version)

    return Task(function, problem.inputs, problem.cotangent)


def conv_task(
    x_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    device: str = "cuda",
) -> Task:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    groups = x_shape[1] // kernel_shape[1]
    support = (torch.rand(kernel_shape, generator=generator) < 0.4).to(device)
    inputs = [
        normal(*x_shape).to(memory_format=layout),
        normal(*kernel_shape) * support,
        normal(kernel_shape[0]),
    ]
    padding = [length // 2 for length in kernel_shape[2:]]  # keeps the size: all are odd
    cotangent = normal(x_shape[0], kernel_shape[0], *x_shape[2:]).to(memory_format=layout)

    def function(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return direct_conv(x, kernel, bias, 1, padding, 1, groups, support)

    return Task(function, [tensor.requires_grad_() for tensor in inputs], cotangent)


def im2col_task(
    version: str,
    x_size: tuple[int, ...],
    size: tuple[int, ...],
    dtype: torch.dtype,
    device: str = "cuda",
) -> Task:
    problem = make_im2col(
        version, x_size, size, channels=8, out_channels=12, elements=5, dtype=dtype, device=device
    )
    names = list(problem.tensors)

    def function(*inputs: Tensor) -> Tensor:
        given = dict(zip(names, inputs, strict=True))
        order = ("input", "weight", "bias", "P", "SIG")
        # In several pieces.
        options = {**problem.options, "groups": problem.groups, "workspace": 100_000}
        return im2col_conv(*(given.get(name) for name in order), **options)

    inputs = list(problem.tensors.values())
    with torch.no_grad():
        shape = function(*inputs).shape
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    # It multiplies matrices by cuBLAS, which may choose another way to do it.
    return Task(function, inputs, cotangent, exact=False)


NCHW, NHWC = torch.contiguous_format, torch.channels_last
#: Each operator, in its kinds: makes a task of a dtype.
TASKS = {
    **{
        f"construct {version} {len(size)}d": (construct_task, version, size)
        for version, size in CASES
    },
    "conv depthwise 1d": (conv_task, (8, 16, 300), (16, 1, 25), NCHW),
    "conv depthwise 2d": (conv_task, (4, 32, 28, 28), (32, 1, 17, 17), NCHW),
    "conv depthwise channels_last": (conv_task, (4, 32, 28, 28), (32, 1, 17, 17), NHWC),
    "conv groups 2d": (conv_task, (4, 16, 14, 15), (24, 4, 7, 5), NCHW),
    "conv dense channels_last": (conv_task, (2, 12, 20, 20), (10, 12, 5, 5), NHWC),
    "conv depthwise 3d": (conv_task, (2, 8, 8, 9, 10), (8, 1, 5, 5, 5), NCHW),
    **{f"im2col {version} 2d": (im2col_task, version, (20, 31), (9, 7)) for version in VERSIONS},
    "im2col gauss 1d": (im2col_task, "gauss", (700,), (33,)),
    "im2col gauss 3d": (im2col_task, "gauss", (7, 8, 9), (3, 5, 3)),
}
every_task = pytest.mark.parametrize("kind", TASKS)


def make_task(kind: str, dtype: torch.dtype = torch.float32) -> Task:
    make, *arguments = TASKS[kind]
    return make(*arguments, dtype)


@every_task
def test_runs_on_the_current_stream(kind):
    """The inputs are written on a side stream, behind a long wait: another stream would miss it."""
    task = make_task(kind)
    expected = task.run()
    inputs = [torch.zeros_like(tensor).requires_grad_() for tensor in task.inputs]
    delayed = Task(task.function, inputs, torch.zeros_like(task.cotangent))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        delayed.run()  # a new stream has no memory yet, and to get it waits for the device
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            for target, source in zip(
                (*delayed.inputs, delayed.cotangent), (*task.inputs, task.cotangent), strict=True
            ):
                target.copy_(source)
        got = delayed.run()
        assert not stream.query()  # neither the launch nor the gradients waited
    stream.synchronize()
    task.assert_same(got, expected)


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


@every_task
def test_graph_capture_and_replay(kind):
    task = make_task(kind)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up outside of the capture, as torch asks for
        task.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = task.run()
    with torch.no_grad():  # other values in the same memory
        for tensor in task.inputs:
            tensor.mul_(-0.75)
    graph.replay()
    task.assert_same(captured, task.run())


def test_whole_layer_in_a_graph():
    layer = Dcls2d(32, 32, kernel_count=9, dilated_kernel_size=17, padding=8, groups=32).cuda()
    x = torch.randn(4, 32, 28, 28, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (x,))
    y = torch.randn_like(x)
    torch.testing.assert_close(graphed(y), layer(y))


# torch says so when the mode is first set: an error by then, with the mode left as it is.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@every_task
def test_never_synchronises(kind):
    task = make_task(kind)
    task.run()  # what is set up once may wait
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        task.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@every_task
def test_bitwise_equal_run_to_run(kind, dtype):
    task = make_task(kind, dtype)
    first = task.run()
    for _ in range(3):
        for a, b in zip(task.run(), first, strict=True):
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
