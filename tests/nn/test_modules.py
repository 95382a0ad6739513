"""What the modules compute: the oracle's kernel and torch's convolution."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import FORWARD, LAYERS, TRANSPOSED, Layer, assert_close, layer_id
from support import SIGMA_VERSIONS, VERSIONS
from torch import nn

import DCLS.construct.modules as modules

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
forward_layers = pytest.mark.parametrize("layer", FORWARD, ids=layer_id)
versions = pytest.mark.parametrize("version", VERSIONS)


@layers
@versions
def test_output_and_gradients_are_those_of_the_oracle(layer: Layer, version: str) -> None:
    torch.manual_seed(0)
    module = layer.make(version=version, groups=2, dtype=torch.float64)
    with torch.no_grad():
        module.P.uniform_(-4, 4)  # some off the grid
    twin = copy.deepcopy(module)
    x = layer.input(module, 2).requires_grad_()
    function = getattr(nn.functional, f"conv{'_transpose' * layer.transposed}{layer.ndim}d")
    want = function(x, layer.kernel(twin), twin.bias, groups=2)
    cotangent = torch.randn_like(want)
    want.backward(cotangent)
    want_input, x.grad = x.grad, None
    got = module(x)
    got.backward(cotangent)
    assert_close(got, want)
    assert_close(x.grad, want_input)
    assert [name for name, _ in module.named_parameters()] == [
        "weight", "P", *(["SIG"] * (version in SIGMA_VERSIONS)), "bias"
    ]  # fmt: skip
    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, twin.get_parameter(name).grad)


@layers
def test_float32_is_the_default_and_close_to_float64(layer: Layer) -> None:
    torch.manual_seed(1)
    module = layer.make()
    x = layer.input(module, 2)
    got = module(x)
    assert got.dtype == torch.float32
    want = module.double()(x.double())
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


@forward_layers
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 1, "each", "same", "valid"])
def test_padding_is_that_of_torch(layer: Layer, mode: str, padding: Any) -> None:
    torch.manual_seed(2)
    if padding == "each":
        padding = tuple(range(layer.ndim))
    stride = 1 if padding == "same" else tuple(range(1, layer.ndim + 1))
    options = {"stride": stride, "padding": padding, "padding_mode": mode}
    module = layer.make(groups=2, dtype=torch.float64, bias=padding != 1, **options)
    twin = layer.torch_twin(module, **options)
    batched = layer.input(module, 2)
    assert_close(module(batched), twin(batched))
    assert_close(module(batched[0]), twin(batched[0]))
    empty = batched[:0]
    try:
        want = twin(empty)
    except RuntimeError:  # torch cannot pad an empty batch in every mode
        with pytest.raises(RuntimeError):
            module(empty)
    else:
        assert module(empty).shape == want.shape


@pytest.mark.parametrize("layer", TRANSPOSED, ids=layer_id)
def test_transposed_is_that_of_torch(layer: Layer) -> None:
    torch.manual_seed(3)
    stride = tuple(range(2, layer.ndim + 2))
    options = {"stride": stride, "padding": 1, "output_padding": 1}
    module = layer.make(groups=2, dtype=torch.float64, **options)
    twin = layer.torch_twin(module, **options)
    batched = layer.input(module, 2)
    assert_close(module(batched), twin(batched))
    assert_close(module(batched[0]), twin(batched[0]))
    assert module(batched[:0]).shape == twin(batched[:0]).shape
    for more in range(2):
        smallest = [
            (n - 1) * s - 2 + k
            for n, s, k in zip(batched.shape[2:], stride, layer.size, strict=True)
        ]
        spatial = [n + more for n in smallest]
        want = twin(batched, output_size=spatial)
        assert want.shape[2:] == tuple(spatial)
        assert_close(module(batched, output_size=spatial), want)
        assert_close(module(batched, [2, 6, *spatial]), want)
        assert_close(module(batched[0], torch.Size(spatial)), want[0])


def test_zero_channels_give_the_bias_or_nothing() -> None:
    """Torch returns no channel for no input channel, and refuses to have no output channel."""
    with pytest.warns(UserWarning, match="zero-element"):
        module = modules.Dcls2d(0, 4, 3, dilated_kernel_size=3)
    assert torch.equal(module.bias, torch.zeros(4))
    torch.nn.init.constant_(module.bias, 2)
    assert torch.equal(module(torch.zeros(2, 0, 8, 8)), torch.full((2, 4, 6, 6), 2.0))
    with pytest.warns(UserWarning, match="zero-element"):
        no_output = modules.Dcls2d(4, 0, 3, dilated_kernel_size=3)
    assert no_output(torch.zeros(2, 4, 8, 8)).shape == (2, 0, 6, 6)


# A kernel of one point for several elements is a shape, too.
@pytest.mark.filterwarnings("ignore:.*dilated_kernel_size=1:UserWarning")
@given(data=st.data())
@settings(max_examples=60, deadline=None, database=None)
def test_any_shape_is_that_of_torch(data: st.DataObject) -> None:
    draw = data.draw
    chosen = draw(st.sampled_from(LAYERS))
    size = tuple(draw(st.integers(1, 8 if len(chosen.size) == 1 else 4)) for _ in chosen.size)
    dense = tuple(draw(st.integers(1, 3)) for _ in chosen.dense)
    layer = Layer(chosen.name, chosen.ndim, size, dense, chosen.more)
    groups = draw(st.integers(1, 3))
    many = st.integers(1, 3)
    stride = tuple(draw(st.integers(1, 3)) for _ in range(layer.ndim))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(layer.ndim))
    if layer.transposed and any(
        (n + 1 + axis) * s - 2 * p + n <= 0
        for axis, (n, s, p) in enumerate(zip(size, stride, padding, strict=True))
    ):
        return
    version = draw(st.sampled_from(VERSIONS))
    torch.manual_seed(draw(st.integers(0, 99)))
    module = layer.make(
        groups * draw(many),
        groups * draw(many),
        draw(st.integers(1, 5)),
        stride=stride,
        padding=padding,
        groups=groups,
        bias=draw(st.booleans()),
        version=version,
        dtype=torch.float64,
    )
    kernel = module.DCK(module.weight, module.P, module.SIG)
    assert kernel.shape[2:] == (layer.size if layer.name == "Dcls2dK1d" else layer.kernel_size)
    x = layer.input(module, draw(st.integers(0, 2)))
    assert_close_or_empty(module(x), layer.torch_twin(module, stride=stride, padding=padding)(x))


def assert_close_or_empty(got: torch.Tensor, want: torch.Tensor) -> None:
    """Compares two tensors, of which a batch may be empty."""
    assert got.shape == want.shape
    if want.numel():
        assert_close(got, want)


def test_the_weights_of_a_non_square_kernel_stay_on_their_own_axis() -> None:
    # 0.1.1 centres by the sizes in the wrong order, so that a corner falls off the grid.
    for version in VERSIONS:
        module = modules.Dcls2d(1, 1, 1, dilated_kernel_size=(3, 9), version=version)
        with torch.no_grad():
            module.weight.fill_(1)
            if module.SIG is not None:
                module.SIG.zero_()
            along_width = 1 if version == "v0" else 0
            module.P[along_width] = 4
            module.P[1 - along_width] = -1
        kernel = module.DCK(module.weight, module.P, module.SIG)[0, 0]
        assert divmod(int(kernel.argmax()), 9) == (0, 8)
        assert kernel.sum().item() == pytest.approx(1, abs=1e-5)


@layers
def test_positions_broadcast_and_may_be_integers(layer: Layer) -> None:
    module = layer.make(dtype=torch.float64, version="gauss")
    wide = torch.randint(-1, 2, module.P.shape)
    narrow = wide[:, :, :1]
    with torch.no_grad():
        module.P.copy_(narrow.expand_as(module.P))
        want = module.DCK(module.weight, module.P, module.SIG)
        module.P.requires_grad_(False)
        module.P.data = narrow.clone()
    assert module.P.dtype == torch.int64
    assert torch.equal(module.DCK(module.weight, module.P, module.SIG), want)
    module(layer.input(module, 1)).sum().backward()
    assert module.weight.grad is not None
    module.P = nn.Parameter(narrow.double())
    module(layer.input(module, 1)).sum().backward()
    assert module.P.grad.shape == narrow.shape
    module.clamp_parameters()


@layers
def test_conv_forward_may_be_called(layer: Layer) -> None:
    module = layer.make(dtype=torch.float64)
    x = layer.input(module, 1)
    halves = [module.weight / 2, None, module.P, module.SIG]
    want = (module(x) - module.bias.reshape(-1, *[1] * layer.ndim)) / 2
    assert_close(module._conv_forward(x, *halves), want)


@pytest.mark.parametrize("name", [name for name in modules.__all__ if name.startswith("Construct")])
def test_kernel_builders_work_alone(name: str) -> None:
    ndim = int(name[15])
    learnable = int(name[-2])
    dense = (2,) * (ndim - learnable)
    arguments = [6, 4, 2, 3, *([dense] if dense else []), (5,) * learnable, "v1"]
    builder = getattr(modules, name)(*arguments)
    assert list(builder.parameters()) == []
    assert builder.state_dict() == {}
    W = torch.randn(6, 2, *dense, 3, dtype=torch.float64)
    P = torch.rand(learnable, *W.shape, dtype=torch.float64)
    kernel = builder(W, P, None)
    assert kernel.shape == (6, 2, *dense, *(5,) * learnable)
    assert_close(builder(W, P), kernel)
    assert_close(kernel.flatten(2).sum(-1), W.flatten(2).sum(-1), 1e-6)
    assert "version=v1" in repr(builder)
    assert "groups=2" in repr(builder)


@layers
def test_layers_autocast(layer: Layer) -> None:
    module = layer.make(version="gauss")
    x = layer.input(module, 2)
    want = module(x)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = module(x)
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).abs().max() < 0.05 * want.abs().max()
        module.weight.data = module.weight.data.half()  # and once more with mixed dtypes
    got.sum().backward()
    assert module.weight.grad.dtype == torch.float16
    assert module.P.grad.dtype == torch.float32
    with pytest.raises((TypeError, ValueError, RuntimeError), match="dtype"):
        module(x)


def test_an_ensemble_of_layers_runs_under_vmap() -> None:
    torch.manual_seed(4)
    models = [modules.Dcls2d(2, 3, 2, dilated_kernel_size=(3, 5)).double() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(3, 2, 2, 7, 8, dtype=torch.float64)

    def call(parameters: Any, buffers: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(models[0], (parameters, buffers), (x,))

    got = torch.vmap(call)(parameters, buffers, x)
    assert_close(got, torch.stack([m(y) for m, y in zip(models, x, strict=True)]))


@layers
def test_a_layer_moves_to_a_device(layer: Layer, device: str) -> None:
    torch.manual_seed(6)
    module = layer.make(dtype=torch.float64)
    x = layer.input(module, 2)
    want = module(x)
    want.sum().backward()
    twin = copy.deepcopy(module).to(device)
    twin.zero_grad()
    got = twin(x.to(device))
    got.sum().backward()
    assert_close(got.cpu(), want)
    for name, parameter in module.named_parameters():
        assert_close(twin.get_parameter(name).grad.cpu(), parameter.grad)


@layers
def test_half_and_bfloat16_layers(layer: Layer) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        module = layer.make(dtype=dtype)
        assert {p.dtype for p in module.parameters()} == {dtype}
        x = layer.input(module, 2)
        got = module(x)
        want = module.double()(x.double())
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() < 0.05 * want.abs().max()


def test_a_layer_may_be_compiled_and_change_its_version() -> None:
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("this torch does not compile on this Python")
    torch._dynamo.reset()
    module = modules.Dcls2d(2, 2, 3, dilated_kernel_size=(3, 5))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, 8, 8)
    for version in ("gauss", "max", "v0", "gauss"):
        module.version = version
        torch.testing.assert_close(compiled(x), module(x))


def test_the_readme_of_the_method_runs() -> None:
    from DCLS.construct.modules.Dcls import Dcls2d

    m = Dcls2d(16, 33, kernel_count=3, dilated_kernel_size=7)
    output = m(torch.randn(2, 16, 20, 30))
    output.sum().backward()
    assert output.shape == (2, 33, 14, 24)
    assert m.weight.grad.abs().sum() > 0
    assert m.P.grad.abs().sum() > 0

    flat = modules.Dcls2dK1d(
        out_channels=32, in_channels=32, kernel_count=3, dilated_kernel_size=11, flat_dim=0,
        groups=1, padding=(11 // 2, 0),
    )  # fmt: skip
    assert flat(torch.randn(2, 32, 14, 14)).shape == (2, 32, 14, 14)

    deep = modules.Dcls3_1d(
        out_channels=8, in_channels=8, kernel_count=26, dilated_kernel_size=11,
        dense_kernel_size=(3, 3), groups=1, padding=(1, 1, 11 // 2),
    )  # fmt: skip
    output = deep(torch.randn(2, 8, 5, 5, 21))
    output.sum().backward()
    assert output.shape == (2, 8, 5, 5, 21)
    assert deep.weight.grad.shape == (8, 8, 3, 3, 26)
    assert deep.P.grad.shape == (1, 8, 8, 3, 3, 26)
