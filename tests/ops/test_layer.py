"""``dcls::layer``: a whole layer in one operator, against the separate operators."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layers import FORWARD, Layer, layer_id
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from DCLS import Dcls2d
from DCLS._ops import layer as layer_op
from DCLS._ops.layer import _separately
from DCLS._spec import VERSIONS

LAYERS = pytest.mark.parametrize("layer", FORWARD, ids=layer_id)


def make(layer: Layer, version: str, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """A layer with positions all over its kernel, some of them on grid points."""
    torch.manual_seed(0)
    module = layer.make(version=version, method="direct", **more).to(dtype)
    with torch.no_grad():
        module.P.copy_(torch.randn(module.P.shape, dtype=torch.float64) * 2)
        module.P.flatten()[::3].round_()
    module.clamp_parameters()
    return module


def arguments(module: Any, x: Tensor, saves: tuple[bool, bool] = (True, True)) -> tuple[Any, ...]:
    """What the layer gives to the operator."""
    taken: list[tuple[Any, ...]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.dcls.layer.default:
                taken.append(args)
            return func(*args, **(kwargs or {}))

    with Record(), torch.no_grad():
        module(x)
    (args,) = taken
    SIG = None if args[3] is None else module.SIG
    tensors = (x, module.weight, module.P, SIG, module.bias)
    return (*tensors, *args[5:-1], list(saves))


def results(call: Any, args: tuple[Any, ...], cotangent: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of all tensors."""
    tensors = [t.detach().clone().requires_grad_() for t in args[:5] if t is not None]
    given = iter(tensors)
    output = call(*(None if t is None else next(given) for t in args[:5]), *args[5:])
    if cotangent is None:
        cotangent = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).to(output.device)
        cotangent = cotangent.reshape(output.shape).to(output.dtype)
    return [output, *torch.autograd.grad(output, tensors, cotangent)]


@pytest.mark.sanitizer
@LAYERS
@pytest.mark.parametrize("version", VERSIONS)
def test_equals_the_separate_operators(layer: Layer, version: str, device: str) -> None:
    """Bit for bit, except for the sum that is the gradient of the bias."""
    module = make(layer, version).to(device)
    args = arguments(module, layer.input(module, 2).to(device))
    *got, bias = results(layer_op, args)
    *expected, expected_bias = results(_separately, args)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.allclose(bias, expected_bias, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_dtypes_and_layouts(dtype: torch.dtype, channels_last: bool, device: str) -> None:
    layer = FORWARD[1]
    module = make(layer, "gauss", dtype, groups=2).to(device)
    x = layer.input(module, 3).to(device)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    args = arguments(module, x)
    *got, bias = results(layer_op, args)
    *expected, expected_bias = results(_separately, args)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert torch.allclose(bias, expected_bias, rtol=tolerance)
    assert got[0].is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_elements_may_be_float32_where_the_input_has_16_bits(dtype: torch.dtype) -> None:
    layer = FORWARD[1]
    module = make(layer, "v1", torch.float32)
    args = arguments(module, layer.input(module, 2))
    args = (args[0].to(dtype), *args[1:4], args[4].to(dtype), *args[5:])
    *got, _ = results(layer_op, args)
    *expected, _ = results(_separately, args)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("stride", "padding", "groups"), [(1, 3, 1), ((2, 3), (2, 0), 2), (1, "same", 2)]
)
def test_geometry(stride: Any, padding: Any, groups: int) -> None:
    torch.manual_seed(0)
    module = Dcls2d(4, 6, 5, stride, padding, (7, 5), groups, method="direct").double()
    args = arguments(module, torch.randn(2, 4, 11, 12, dtype=torch.float64))
    for a, b in zip(results(layer_op, args), results(_separately, args), strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-13)


def small(version: str = "gauss") -> tuple[Any, ...]:
    layer = Layer("Dcls2d", 2, (3, 2))
    module = make(layer, version, in_channels=2, out_channels=2, kernel_count=2, groups=1)
    with torch.no_grad():
        module.P.mul_(0.2).add_(0.13)
        if module.SIG is not None:
            module.SIG.fill_(0.31)
    return arguments(module, torch.randn(1, 2, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("version", VERSIONS)
def test_derivatives(version: str) -> None:
    args = small(version)
    tensors = [t.detach().requires_grad_() for t in args[:5] if t is not None]

    def call(*given: Tensor) -> Tensor:
        left = iter(given)
        return layer_op(*(None if t is None else next(left) for t in args[:5]), *args[5:])

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


def test_gradients_of_the_gradient_operator() -> None:
    args = small()
    output, _ = torch.ops.dcls.layer(*args)
    tensors = [torch.randn_like(output), *args[:4]]
    tensors = [t.detach().requires_grad_() for t in tensors]

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            _, saved = torch.ops.dcls.layer(*given[1:], None, *args[5:])
        return torch.ops.dcls.layer_backward(*given, saved, *args[5:], [True] * 5)

    assert torch.autograd.gradcheck(call, tensors)


def test_opcheck() -> None:
    args = small()
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    inputs = [t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in args]
    torch.library.opcheck(torch.ops.dcls.layer.default, tuple(inputs), test_utils=checks)
    output, saved = torch.ops.dcls.layer(*args)
    torch.library.opcheck(
        torch.ops.dcls.layer_backward.default,
        (torch.ones_like(output), *args[:4], saved, *args[5:], [True] * 5),
        test_utils=checks,
    )


def test_fakes_take_symbols_for_sizes() -> None:
    """Both operators are traced with symbolic sizes, which no check may remember."""
    args = small()
    output, saved = torch.ops.dcls.layer(*args)

    def both(x: Tensor, cotangent: Tensor) -> list[Tensor]:
        forward, _ = torch.ops.dcls.layer(x, *args[1:])
        given = (cotangent, x, *args[1:4], saved, *args[5:], [True] * 5)
        return [forward, *torch.ops.dcls.layer_backward(*given)]

    x, cotangent = args[0].detach(), torch.randn_like(output)
    with torch.no_grad():
        traced = make_fx(both, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x, cotangent)
        for got, expected in zip(traced(x, cotangent), both(x, cotangent), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("mask", [(0,), (1,), (2,), (3,), (4,), (0, 4), (1, 3), ()])
def test_only_what_is_wanted(mask: tuple[int, ...]) -> None:
    args = small()
    output, saved = torch.ops.dcls.layer(*args)
    wanted = [i in mask for i in range(5)]
    cotangent = torch.randn_like(output)
    call = (cotangent, *args[:4], saved, *args[5:])
    every = torch.ops.dcls.layer_backward(*call, [True] * 5)
    for some, full, kept in zip(
        torch.ops.dcls.layer_backward(*call, wanted), every, wanted, strict=True
    ):
        assert torch.equal(some, full) if kept else some.numel() == 0


def test_a_gradient_that_was_not_foreseen() -> None:
    """With another ``saves`` than autograd then asks for, the gradients are right all the same."""
    args = small()
    for saves in ([False, False], [True, False], [False, True]):
        got = results(layer_op, (*args[:-1], saves))
        for a, b in zip(got, results(_separately, args), strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (1, 2, 3, 2)])
def test_empty_and_tiny(shape: tuple[int, ...]) -> None:
    args = small()
    args = (torch.randn(shape, dtype=torch.float64), *args[1:])
    for a, b in zip(results(layer_op, args), results(_separately, args), strict=True):
        assert torch.allclose(a, b, rtol=1e-13)


def test_a_diverged_position_shows() -> None:
    args = small()
    with torch.no_grad():
        args[2][0, 0, 0, 0] = float("nan")
    output = layer_op(*args)
    assert output[:, 0].isnan().all()
    assert output[:, 1].isfinite().all()


class Calls(TorchDispatchMode):
    """Records the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_training_step_is_one_operator_each_way() -> None:
    module = Dcls2d(8, 8, 5, dilated_kernel_size=9, padding=4, groups=8)
    x = torch.randn(1, 8, 12, 12, requires_grad=True)
    with Calls() as calls:
        module(x).backward(torch.ones(1, 8, 12, 12))
    ours = [name for name in calls.names if name.startswith("dcls")]
    assert ours == ["dcls.layer.default", "dcls.layer_backward.default"]
    assert not any("flip" in name or "roll" in name for name in calls.names)


def _with_hook(module: Any) -> None:
    module.DCK.register_forward_hook(lambda _m, _i, kernel: kernel * 2)


def test_hooks_of_all_modules_see_the_builder() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=7, padding=3, groups=2, method="direct")
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, _inputs, _output: seen.append(type(m).__name__)
    )
    try:
        module(torch.randn(1, 2, 8, 8))
    finally:
        handle.remove()
    assert seen == ["ConstructKernel2d", "Dcls2d"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_than_the_parameters_is_an_error(dtype: torch.dtype) -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=7, groups=2, bias=False, method="direct")
    with pytest.raises(TypeError, match="dtype"):
        module(torch.randn(1, 2, 8, 8).to(dtype))


def _parametrized(module: Any) -> None:
    class Half(nn.Module):
        def forward(self, P: Tensor) -> Tensor:
            return P / 2

    nn.utils.parametrize.register_parametrization(module, "P", Half())


def _shared(module: Any) -> None:
    module.P = nn.Parameter(module.P[:, :, :, :1].detach().clone())


def _integer(module: Any) -> None:
    module.P = nn.Parameter(torch.zeros_like(module.P, dtype=torch.int64), requires_grad=False)


def _replaced(module: Any) -> None:
    own = module.DCK
    module.DCK = nn.Identity()
    module.DCK.forward = lambda weight, P, SIG: own(weight, P, SIG) * 3


@pytest.mark.parametrize(
    ("change", "in_one"),
    [
        (_with_hook, False),
        (_parametrized, True),
        (_shared, False),
        (_integer, False),
        (_replaced, False),
    ],
)
def test_what_comes_between_is_kept(change: Any, in_one: bool) -> None:
    torch.manual_seed(0)
    module = Dcls2d(4, 4, 3, dilated_kernel_size=7, padding=3, groups=4, method="direct").double()
    change(module)
    plain = copy.deepcopy(module)
    plain.method = "conv"
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    with Calls() as calls:
        output = module(x)
    assert ("dcls.layer.default" in calls.names) == in_one
    assert torch.allclose(output, plain(x), rtol=1e-11, atol=1e-11)


def test_autocast_casts_as_the_separate_operators() -> None:
    torch.manual_seed(0)
    module = Dcls2d(4, 4, 3, dilated_kernel_size=9, padding=4, groups=4, method="direct")
    with torch.no_grad():
        module.P.uniform_(-4, 4)
    x = torch.randn(2, 4, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        together = module(x)
        kernel = module.DCK(module.weight, module.P, module.SIG)
        apart = torch.ops.dcls.direct_conv(x, kernel, module.bias, None, [1, 1], [4, 4], [1, 1], 4)
    assert together.dtype == torch.bfloat16
    assert torch.equal(together, apart)
    together.float().sum().backward()
    assert module.P.grad is not None
    assert module.P.grad.dtype == torch.float32


def test_transforms_of_a_layer() -> None:
    torch.manual_seed(0)
    module = Dcls2d(2, 2, 2, dilated_kernel_size=5, padding=2, groups=2, method="direct").double()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    x = torch.randn(3, 1, 2, 6, 6, dtype=torch.float64)

    def loss(given: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(module, given, (one,)).square().sum()

    batched = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(3):
        single = grad(loss)(parameters, x[index])
        for name, value in single.items():
            assert torch.allclose(batched[name][index], value, rtol=1e-10, atol=1e-12)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, pushed = jvp(lambda given: loss(given, x[0]), (parameters,), (tangents,))
    pulled = grad(loss)(parameters, x[0])
    expected = sum((pulled[name] * tangents[name]).sum() for name in parameters)
    assert torch.allclose(pushed, expected, rtol=1e-10)


def test_vmap_of_the_operators() -> None:
    args = small()
    xs = torch.randn(3, *args[0].shape, dtype=torch.float64)
    in_dims = (0, *(None,) * (len(args) - 1))
    outputs, _ = vmap(torch.ops.dcls.layer, in_dims=in_dims)(xs, *args[1:])
    for x, output in zip(xs, outputs, strict=True):
        assert torch.allclose(output, layer_op(x, *args[1:]), rtol=1e-12)


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (0, torch.zeros(2, 4), ValueError, "input must have shape"),
        (0, torch.zeros(1, 3, 4, 4, dtype=torch.float64), ValueError, "input must have 1 groups"),
        (0, torch.zeros(1, 2, 4, 4), TypeError, "weight must have the dtype of input"),
        (0, torch.zeros(1, 2, 1, 4, dtype=torch.float64), ValueError, "kernel_size must fit"),
        (2, torch.zeros(1, 2, 2, 2, dtype=torch.float64), ValueError, "P must have shape"),
        (3, None, ValueError, "SIG must be given"),
        (4, torch.zeros(3, dtype=torch.float64), ValueError, "bias must have shape"),
        (6, [0, 0], ValueError, "axis_order must be a permutation"),
        (7, "v9", ValueError, "version must be one of"),
        (9, [3], ValueError, "kernel_size must have 2 entries"),
        (9, [3, 3], ValueError, "construct must build the 36 cells"),
        (10, [0, 1], ValueError, r"stride\[0\] must be between"),
    ],
)
def test_bad_arguments(place: int, value: object, error: type[Exception], message: str) -> None:
    args = list(small())
    args[place] = value
    with pytest.raises(error, match=message):
        layer_op(*args)


def test_saved_is_checked() -> None:
    args = small()
    output, saved = torch.ops.dcls.layer(*args)
    with pytest.raises(ValueError, match="saved must be what layer returned"):
        torch.ops.dcls.layer_backward(
            torch.ones_like(output), *args[:4], saved[1:], *args[5:], [True] * 5
        )
