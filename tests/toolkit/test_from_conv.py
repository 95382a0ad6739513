"""One DCLS layer in the place of one convolution of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from support import VERSIONS
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import DCLS
from DCLS import im2col
from DCLS.nn.from_conv import kernel_error

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
IM2COL = [getattr(im2col.modules, f"Dcls{ndim}d") for ndim in (1, 2, 3)]


def make_conv(layer: Layer, size: tuple[int, ...], **more: Any) -> Any:
    """A convolution of torch that the layer can replace, with a small dense part."""
    kind = getattr(nn, f"Conv{'Transpose' * layer.transposed}{layer.ndim}d")
    return kind(4, 6, size, groups=2, dtype=torch.float64, **more)


def small_size(layer: Layer) -> tuple[int, ...]:
    """A kernel that fits that of the layer, odd or even as it is on each axis."""
    if layer.name == "Dcls2dK1d":
        return tuple(1 if s == 1 else 2 + s % 2 for s in layer.kernel_size)
    return (*layer.dense, *(s - 2 if s > 2 else s for s in layer.size))


@layers
@pytest.mark.parametrize("version", ["v0", "v1", "max"])
def test_a_trained_kernel_is_kept(layer: Layer, version: Any) -> None:
    for more in ({}, {"stride": 2, "padding": 1, "bias": False}):
        conv = make_conv(layer, small_size(layer), **more).eval()
        x = torch.randn(2, 4, *(s + 5 for s in layer.kernel_size), dtype=torch.float64)
        kind = getattr(DCLS, layer.name)
        module = kind.from_conv(
            conv, dilated_kernel_size=layer.size, start="kernel", version=version
        )
        assert type(module) is kind
        assert not module.training
        assert_close(module(x), conv(x), 1e-12)
        module.train()(x).square().sum().backward()
        assert (module.P.grad != 0).any()


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_trained_kernel_is_kept_by_im2col(ndim: int, dtype: torch.dtype) -> None:
    conv = getattr(nn, f"Conv{ndim}d")(4, 6, 3, padding=2, groups=2, dilation=2, dtype=dtype)
    x = torch.randn(2, 4, *range(8, 8 + ndim), dtype=dtype)
    module = IM2COL[ndim - 1].from_conv(conv, dilated_kernel_size=7, start="kernel")
    assert module.P.shape == (ndim, 4, 3**ndim)
    assert module.version == "v0"
    assert_close(module(x), conv(x), 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [DCLS.Dcls2d, IM2COL[1]])
def test_where_the_grid_ends_with_the_kernel_every_version_is_exact(
    kind: Any, version: Any
) -> None:
    """No tap is outside: least squares solves for the weights also where elements overlap."""
    conv = nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=2, dtype=torch.float64)
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    module = kind.from_conv(conv, dilated_kernel_size=(3, 5), start="kernel", version=version)
    assert_close(module(x), conv(x), 1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_any_padding(mode: Any) -> None:
    x = torch.randn(2, 3, 19, 20, dtype=torch.float64)
    for padding, size, dilation, new in (
        ("same", 3, 1, 8), ("same", 4, 1, 7), ("same", (2, 3), (3, 2), (6, 9)),
        ("valid", 3, 2, 9), ((0, 2), 5, 1, (9, 7)), (1, 4, 1, (6, 10)),
    ):  # fmt: skip
        conv = nn.Conv2d(
            3, 2, size, padding=padding, dilation=dilation, padding_mode=mode, dtype=torch.float64
        )
        module = DCLS.Dcls2d.from_conv(conv, dilated_kernel_size=new, start="kernel")
        assert module.padding_mode == mode
        assert_close(module(x), conv(x), 1e-12)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [DCLS.Dcls2d, IM2COL[1]])
def test_fewer_elements_are_a_fit(kind: Any, version: Any) -> None:
    """Of a kernel that so many elements made, only rounding of the search is missing."""
    torch.manual_seed(3)
    source = kind(2, 2, 3, dilated_kernel_size=9, groups=2, version=version, dtype=torch.float64)
    with torch.no_grad():
        source.P[:] = torch.tensor([[-3.0, 0.2, 2.7], [2.6, -0.3, -2.0]])[:, None].reshape(
            2, *([1] * (source.P.ndim - 2)), 3
        )
        source.weight.uniform_(0.5, 1)
    conv = source.to_conv()
    module = kind.from_conv(
        conv, dilated_kernel_size=9, kernel_count=3, start="kernel", version=version
    )
    error = kernel_error(module, conv)
    assert error < 1e-3
    x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    kernel, want = module.to_conv().weight, conv.weight
    assert_close(
        (kernel - want).norm() / want.norm(), torch.tensor(error, dtype=torch.float64), 1e-9
    )
    assert_close(module(x), module.to_conv()(x))
    if version == "v0":
        none = kind.from_conv(conv, dilated_kernel_size=9, kernel_count=1, start="kernel")
        assert kernel_error(none, conv) > 0.3


def test_a_fit_is_better_than_the_largest_weights() -> None:
    conv = nn.Conv2d(8, 8, 7, groups=8, dtype=torch.float64)
    module = DCLS.Dcls2d.from_conv(
        conv, dilated_kernel_size=17, kernel_count=20, start="kernel", version="v1"
    )
    squares = conv.weight.detach().flatten(1).square()
    left_out = squares.sort(1).values[:, :29].sum() / squares.sum()
    assert kernel_error(module, conv) < 0.75 * left_out.sqrt()


def test_more_elements_start_without_weight() -> None:
    conv = nn.Conv1d(2, 2, 3, padding=1, dtype=torch.float64)
    module = DCLS.Dcls1d.from_conv(conv, dilated_kernel_size=9, kernel_count=7, start="kernel")
    x = torch.randn(1, 2, 12, dtype=torch.float64)
    assert_close(module(x), conv(x), 1e-12)
    assert (module.weight[..., 3:] == 0).all()


@pytest.mark.parametrize("start", ["spread", "normal", "grid", lambda p, _: p + 1])
def test_fresh_starts_keep_all_but_the_weights(start: Any) -> None:
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4, dtype=torch.float16).eval()
    conv.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    module = DCLS.Dcls2d.from_conv(conv, dilated_kernel_size=9, start=start, method="conv")
    assert (module.version, module.kernel_count, module.method) == ("gauss", 9, "conv")
    assert module.init_positions == start
    assert (module.padding, module.stride, module.groups) == ((4, 4), (2, 2), 4)
    assert torch.equal(module.bias, conv.bias)
    assert not module.training
    assert {n: p.requires_grad for n, p in module.named_parameters()} == {
        "weight": False, "P": False, "SIG": False, "bias": True
    }  # fmt: skip
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    assert all(torch.equal(conv.state_dict()[name], value) for name, value in before.items())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_meta_and_no_channels() -> None:
    conv = nn.Conv2d(2, 2, 3, device="meta")
    for start in ("kernel", "spread"):
        module = DCLS.Dcls2d.from_conv(conv, dilated_kernel_size=9, start=start)
        assert module.P.is_meta
    empty = nn.Conv2d(2, 2, 3)
    empty.out_channels, empty.weight, empty.bias = 0, nn.Parameter(empty.weight[:0]), None
    module = DCLS.Dcls2d.from_conv(empty, dilated_kernel_size=9, start="kernel")
    assert module.weight.numel() == 0


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Wrapped(nn.Parameter):
    """As a sharded or quantised weight."""


class Bound(nn.Conv2d):
    """Adds nothing that counts."""


def hooked(*_: Any) -> None:
    pass


def with_hook(register: str) -> Any:
    conv = nn.Conv2d(2, 2, 3)
    getattr(conv, register)(hooked)
    return conv


def changed(change: Any) -> Any:
    conv = nn.Conv2d(2, 2, 3)
    change(conv)
    return conv


@pytest.mark.parametrize(
    ("conv", "more", "kind", "message"),
    [
        (3, {}, TypeError, "int is no convolution of torch.nn"),
        (nn.Linear(2, 2), {}, TypeError, "Linear is no convolution"),
        (nn.Conv1d(2, 2, 3), {}, TypeError, "conv must be a torch.nn.Conv2d, got Conv1d"),
        (nn.ConvTranspose2d(2, 2, 3), {}, TypeError, "conv must be a torch.nn.Conv2d"),
        (Scaled(2, 2, 3), {}, TypeError, "Scaled has a forward of its own"),
        (changed(lambda c: setattr(c, "forward", hooked)), {}, TypeError, "forward of its own"),
        (with_hook("register_forward_hook"), {}, RuntimeError, "hooks.*hooked"),
        (with_hook("register_forward_pre_hook"), {}, RuntimeError, "forward_pre_hooks: hooked"),
        (with_hook("register_full_backward_hook"), {}, RuntimeError, "backward_hooks: hooked"),
        (with_hook("register_state_dict_post_hook"), {}, RuntimeError, "hooks: hooked"),
        (changed(lambda c: prune.identity(c, "weight")), {}, RuntimeError, "hooks: Identity"),
        (
            changed(lambda c: parametrize.register_parametrization(c, "weight", nn.Identity())),
            {}, RuntimeError, "parametrizations",
        ),
        (changed(lambda c: c.register_buffer("m", torch.ones(1))), {}, RuntimeError, r"own.*\['m'"),
        (nn.LazyConv2d(2, 3), {}, TypeError, "weight of the class UninitializedParameter"),
        (
            changed(lambda c: setattr(c, "weight", Wrapped(c.weight))),
            {}, TypeError, "weight of the class Wrapped; convert the model before",
        ),
        (nn.Conv2d(2, 2, 3), {"dilated_kernel_size": 1}, ValueError, "at least 3 on axis 0"),
        (nn.Conv2d(2, 2, 3, dilation=3), {"dilated_kernel_size": 5}, ValueError, "at least 7"),
        (nn.Conv2d(2, 2, 3), {"dilated_kernel_size": (5, 8)}, ValueError, "odd on axis 1"),
        (nn.Conv2d(2, 2, 2), {"dilated_kernel_size": 7}, ValueError, "even on axis 0"),
        (nn.Conv2d(2, 2, 3), {"dilated_kernel_size": "7"}, TypeError, "dilated_kernel_size"),
        (nn.Conv2d(2, 2, 3), {"kernel_count": 0}, ValueError, "kernel_count"),
        (nn.Conv2d(2, 2, 3), {"version": "v9"}, ValueError, "version"),
        (nn.Conv2d(2, 2, 3), {"start": "trained"}, ValueError, "start must be one of .*kernel"),
        (nn.Conv2d(2, 2, 3), {"start": None}, TypeError, "start must be"),
        (nn.Conv2d(2, 2, 3), {"method": "fast"}, ValueError, "method"),
        (nn.Conv2d(2, 2, 3, dtype=torch.complex64), {}, TypeError, "dtype"),
    ],
)  # fmt: skip
def test_refusals(conv: Any, more: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        DCLS.Dcls2d.from_conv(conv, **{"dilated_kernel_size": 7, **more})


def test_refusals_of_some_classes() -> None:
    with pytest.raises(ValueError, match="flat kernel"):
        DCLS.Dcls2dK1d.from_conv(nn.Conv2d(2, 2, 3), dilated_kernel_size=7)
    with pytest.raises(ValueError, match="dilation of 1 on axis 0"):
        DCLS.Dcls2_1d.from_conv(nn.Conv2d(2, 2, 3, dilation=2), dilated_kernel_size=7)
    with pytest.raises(ValueError, match="method must be 'auto'"):
        IM2COL[1].from_conv(nn.Conv2d(2, 2, 3), dilated_kernel_size=7, method="conv")
    assert DCLS.Dcls2d.from_conv(Bound(2, 2, 3), dilated_kernel_size=7).kernel_count == 9
