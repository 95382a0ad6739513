"""Modules in torch's own tools: compiler, export, ONNX, transforms, checkpointing, formats."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import DCLS.construct.modules as modules
from DCLS.construct.modules import Dcls1d, Dcls2d, DclsTranspose2d
from DCLS.nn.fold import fold

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """The limit on recompilations counts all tests of a process."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Net(nn.Module):
    """Layers with and without groups, and one that is transposed."""

    def __init__(self, version: str = "gauss") -> None:
        super().__init__()
        self.mix = Dcls2d(2, 4, 3, padding=1, dilated_kernel_size=(3, 5), version=version)
        self.depthwise = Dcls2d(
            4, 4, 3, padding="same", dilated_kernel_size=5, groups=4, version=version
        )
        self.up = DclsTranspose2d(4, 2, 2, stride=2, dilated_kernel_size=4, version=version)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.depthwise(self.mix(x)).relu())


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(output.square().sum(), parameters), strict=True))


# The compiler


# Below 16: beyond, torch compiles a plain convolution again. And as large as no other axis, which
# torch would take for the same symbol.
BATCHES = (12, 13, 14)


# One layer for inductor, whose C++ compiler is slow.
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_compiled_training_with_a_dynamic_batch(backend: str, device: str) -> None:
    torch.manual_seed(0)
    one = Dcls2d(4, 4, 3, padding=2, dilated_kernel_size=5, groups=4)
    model = (one if backend == "inductor" else Net()).to(device)
    channels = model.in_channels if backend == "inductor" else 2
    inputs = [torch.randn(size, channels, 10, 11, device=device) for size in BATCHES]
    twin = copy.deepcopy(model)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend=counter)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-2) for m in (model, twin)]
    start = copy.deepcopy(model.state_dict())
    frames = []
    for x in inputs:
        for optimizer, output in zip(optimizers, (model(x), compiled(x)), strict=True):
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert frames[-1] == frames[0], "a change of the batch or an edit of P compiles again"
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, start[name])
        torch.testing.assert_close(
            twin.get_parameter(name), parameter, rtol=1e-4, atol=1e-5, msg=name
        )


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_compiled_inference(backend: str, device: str) -> None:
    torch.manual_seed(1)
    model = Dcls1d(2, 3, 4, dilated_kernel_size=7, version="max").eval().to(device)
    mode = torch.inference_mode if backend == "aot_eager" else torch.no_grad
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for size in (2, 4):
        x = torch.randn(size, 2, 16, device=device)
        with mode():
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
            before = model(x)
            model.P += 0.3
            assert not torch.equal(model(x), before)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@layers
def test_every_layer_is_one_graph_that_no_edit_of_a_value_breaks(layer: Layer) -> None:
    torch.manual_seed(2)
    module = layer.make(dtype=torch.float64)
    inputs = [layer.input(module, size) for size in BATCHES]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for x in inputs:
        got, want = compiled(x), module(x)
        assert_close(got, want)
        for name, gradient in gradients(module, got).items():
            assert_close(gradient, gradients(module, module(x))[name])
        with torch.no_grad():
            module.P.add_(0.2)
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert frames[-1] == frames[0], "a change of the batch or an edit of P compiles again"


# Export


# torch 2.11's own reader
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_an_exported_model_takes_any_batch_and_keeps_its_parameters() -> None:
    torch.manual_seed(3)
    model = Net().eval()
    x = torch.randn(2, 2, 8, 9)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert set(exported.state_dict) == set(model.state_dict())
    assert str(exported.graph).count("dcls.construct_kernel.default") == 3
    runs = exported.module()
    for size in (1, 2, 6):
        x = torch.randn(size, 2, 8, 9)
        torch.testing.assert_close(runs(x), model(x))
    runs.load_state_dict({k: v + 0.2 for k, v in model.state_dict().items()})
    model.load_state_dict({k: v + 0.2 for k, v in model.state_dict().items()})
    torch.testing.assert_close(runs(x), model(x))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    torch.testing.assert_close(loaded(x), exported.module()(x))


@layers
def test_every_layer_is_exported(layer: Layer) -> None:
    torch.compiler.reset()  # torch 2.6 takes the next export for a recompilation of the last
    module = layer.make(dtype=torch.float64)
    x = layer.input(module, 2)
    assert_close(torch.export.export(module, (x,)).module()(x), module(x))
    folded = torch.export.export(module.to_conv(), (x,))
    assert "dcls" not in str(folded.graph)
    assert_close(folded.module()(x), module(x))


def run_onnx(model: nn.Module, x: Tensor, *others: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Exports with a dynamic batch, and returns what onnxruntime and torch compute."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            model, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
        )
    proto = program.model_proto
    onnx.checker.check_model(proto)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}, "standard operators only"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (name,) = [argument.name for argument in session.get_inputs()]
    results = []
    with torch.no_grad():
        for value in (x, *others):
            (output,) = session.run(None, {name: value.numpy()})
            results.append((torch.from_numpy(output), model(value)))
    return results


def test_a_folded_model_runs_in_onnxruntime() -> None:
    torch.manual_seed(4)
    model = Net().eval()
    x, other = torch.randn(2, 2, 8, 9), torch.randn(5, 2, 8, 9)
    with torch.no_grad():
        want = [model(x), model(other)]
    for (got, plain), dcls in zip(run_onnx(fold(model), x, other), want, strict=True):
        torch.testing.assert_close(got, dcls, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(plain, dcls, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Dcls1d", "Dcls3_1d"])
def test_a_folded_layer_runs_in_onnxruntime(name: str) -> None:
    torch.manual_seed(5)
    layer = next(layer for layer in LAYERS if layer.name == name)
    module = layer.make(groups=2, padding=1).eval()
    x = layer.input(module, 2)
    ((got, _),) = run_onnx(module.to_conv(), x)
    torch.testing.assert_close(got, module(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Dcls1d(16, 16, 1, dilated_kernel_size=25, padding=12, version="v1"), (8, 16, 100)),
        (Dcls1d(4, 4, 3, dilated_kernel_size=9, padding=4), (2, 4, 900)),
        (Dcls2d(4, 4, 3, dilated_kernel_size=9, padding=4, groups=4), (2, 4, 30, 31)),
    ],
)
def test_auto_exports_with_sizes_that_vary(
    module: nn.Module, shape: tuple[int, ...], training: bool
) -> None:
    """The choice of a method does not restrict the sizes."""
    torch.compiler.reset()
    x = torch.randn(shape)
    sizes = {axis: torch.export.Dim(f"s{axis}") for axis in range(x.ndim) if axis != 1}
    with torch.set_grad_enabled(training):
        exported = torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()
    other = torch.randn(shape[0] * 9, shape[1], *(size // 2 for size in shape[2:]))
    torch.testing.assert_close(exported(other), module(other), rtol=1e-4, atol=1e-5)


# Functional calls and checkpointing
#
# Equal to the bit, so with a method of their own: under "auto", a call that records no gradients
# may convolve in another way than one that does, and differ from it by rounding.


def with_method(module: nn.Module, method: str) -> nn.Module:
    if not module.transposed:  # these have one method
        module.method = method
    return module


methods = pytest.mark.parametrize("method", ["direct", "conv"])


@methods
@layers
def test_functional_call_takes_other_parameters(layer: Layer, method: str) -> None:
    torch.manual_seed(6)
    module = with_method(layer.make(dtype=torch.float64), method)
    other = with_method(layer.make(dtype=torch.float64), method)
    x = layer.input(module, 2)
    parameters = {name: p.detach() for name, p in other.named_parameters()}
    before = module(x)
    assert torch.equal(torch.func.functional_call(module, parameters, (x,)), other(x))
    assert torch.equal(module(x), before)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    got = torch.func.grad(loss)(parameters)
    for name, gradient in gradients(other, other(x)).items():
        assert_close(got[name], gradient)


@pytest.mark.parametrize("reentrant", [True, False])
@methods
@layers
def test_checkpointed_layers_have_the_same_gradients(
    layer: Layer, method: str, reentrant: bool
) -> None:
    torch.manual_seed(7)
    module = with_method(layer.make(dtype=torch.float64), method)
    x = layer.input(module, 2).requires_grad_()
    want = gradients(module, module(x))
    output = checkpoint(module, x, use_reentrant=reentrant)
    module.zero_grad()
    output.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, want[name])


# Deferred initialisation


@layers
def test_skipped_initialisation(layer: Layer) -> None:
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_count": 3, **layer.more}
    arguments["dilated_kernel_size"] = layer.size
    if layer.dense:
        arguments["dense_kernel_size"] = layer.dense
    kind = getattr(modules, layer.name)
    state = torch.random.get_rng_state()
    module = nn.utils.skip_init(kind, **arguments)
    assert torch.equal(torch.random.get_rng_state(), state), "no number was drawn"
    assert {p.device.type for p in module.parameters()} == {"cpu"}
    torch.manual_seed(8)
    module.reset_parameters()
    torch.manual_seed(8)
    fresh = kind(**arguments)
    for name, value in fresh.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_a_model_is_built_on_the_meta_device_and_made_real(device: str) -> None:
    with torch.device("meta"):
        model = Net()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model(torch.empty(3, 2, 8, 9, device="meta")).shape == (3, 2, 18, 16)
    real = Net()
    model = model.to_empty(device=device)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    model.load_state_dict(real.state_dict(), strict=True)
    x = torch.randn(3, 2, 8, 9)
    torch.testing.assert_close(model(x.to(device)).cpu(), real(x), rtol=1e-4, atol=1e-5)
    with torch.device("meta"):
        assigned = Net()
    assigned.load_state_dict(real.state_dict(), strict=True, assign=True)
    assert torch.equal(assigned(x), real(x))


# Autocast, formats, graphs


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@layers
def test_autocast_trains(layer: Layer, device: str) -> None:
    torch.manual_seed(9)
    module = layer.make(device=device)
    x = layer.input(module, 2).to(device)
    want = gradients(module, module(x))
    with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
        output = module(x)
    assert output.dtype == (torch.float16 if device == "cuda" else torch.bfloat16)
    for name, gradient in gradients(module, output.float()).items():
        assert gradient.dtype == torch.float32
        assert (gradient - want[name]).norm() < 0.05 * want[name].norm() + 1e-3, name


def test_float16_parameters_under_autocast_on_the_cpu() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=(3, 5)).half()
    x = torch.randn(1, 2, 8, 9)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), module.float()(x), 0.03)


@pytest.mark.parametrize("groups", [1, 4])
def test_channels_last_in_and_out(groups: int, device: str) -> None:
    torch.manual_seed(10)
    for ndim, memory in ((2, torch.channels_last), (3, torch.channels_last_3d)):
        kind: Any = getattr(modules, f"Dcls{ndim}d")
        module = kind(4, 4, 3, padding=1, dilated_kernel_size=3, groups=groups, device=device)
        x = torch.randn(2, 4, *[6, 7, 5][:ndim], device=device)
        want, wanted = module(x), gradients(module, module(x))
        last = x.to(memory_format=memory).requires_grad_()
        plain = module.to_conv()
        got = module(last)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        # As a plain convolution with the same kernel does on this device.
        assert got.is_contiguous(memory_format=memory) == plain(last).is_contiguous(
            memory_format=memory
        )
        if device == "cpu":
            assert got.is_contiguous(memory_format=memory)
        for name, gradient in gradients(module, module(last)).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4)
        # The parameters themselves have other axes than a convolution's: `.to` leaves them alone.
        if ndim == 2:
            moved = copy.deepcopy(module).to(memory_format=memory)
            torch.testing.assert_close(moved(last), want, rtol=1e-4, atol=1e-5)


def test_a_cuda_graph_replays_with_the_present_parameters(device: str) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a CUDA device")
    module = Dcls1d(2, 3, 4, dilated_kernel_size=9, padding=4, device=device)
    x = torch.randn(2, 2, 16, device=device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            module(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = module(x)
    with torch.no_grad():
        module.P.add_(0.5)
        x.normal_()
        graph.replay()
        torch.testing.assert_close(output, module(x))
