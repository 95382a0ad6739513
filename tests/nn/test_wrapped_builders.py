"""A layer and its builder have one version and one size, however the builder is wrapped."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from support import VERSIONS
from torch import Tensor, nn

from DCLS import ConstructKernel2d, Dcls2d, Dcls2dK1d
from DCLS.im2col import modules as im2col

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
checkpoints = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")


class Wrapper(nn.Module):
    """A wrapper as users write it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Tensor:
        kernel: Tensor = self.inner(*args)
        return kernel


class Hidden(Wrapper):
    """One that registers no module."""

    def __init__(self, inner: nn.Module) -> None:
        nn.Module.__init__(self)
        self.call = [inner.forward]

    def forward(self, *args: Any) -> Tensor:
        kernel: Tensor = self.call[0](*args)
        return kernel


def replaced(module: Any, by: Any) -> None:
    del module.DCK
    module.DCK = by


def set_wrapper(wrap: Callable[[Any], Any]) -> Callable[[Any], None]:
    return lambda module: replaced(module, wrap(module.DCK))


WRAPS: dict[str, Callable[[Any], None]] = {
    "none": lambda _: None,
    "checkpointing": checkpoints.apply_activation_checkpointing,
    "offload": set_wrapper(checkpoints.offload_wrapper),
    "compile": set_wrapper(functools.partial(torch.compile, backend="eager")),
    "user": set_wrapper(Wrapper),
    "twice": set_wrapper(lambda builder: Wrapper(checkpoints.checkpoint_wrapper(builder))),
    "hidden": set_wrapper(Hidden),
    "partial": set_wrapper(lambda builder: functools.partial(builder)),
    "method": set_wrapper(lambda builder: builder.forward),
    "function": set_wrapper(lambda builder: lambda *args: builder(*args)),
}
wraps = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


@wraps
@pytest.mark.parametrize("number", [1, 3, 5, 7, 9])
def test_what_is_read_is_what_is_built(number: int, wrap: Callable[[Any], None]) -> None:
    layer = LAYERS[number]
    torch.manual_seed(0)
    module = layer.make(version="gauss", dtype=torch.float64)
    builder, x = module.DCK, layer.input(module, 1)
    wrap(module)
    for change in (module, builder):
        for version in VERSIONS:
            change.version = version
            assert module.version == builder.version == version
            assert f"version={version}" in module.extra_repr()
            assert vars(module)["version"] == version
            assert_close(module(x), layer.torch_twin(module)(x))
        size = tuple(points + 1 for points in layer.size)
        change.dilated_kernel_size = size
        assert module.dilated_kernel_size == builder.dilated_kernel_size == size
        assert f"dilated_kernel_size={size}" in module.extra_repr()
        with torch.no_grad():
            module.P.fill_(99)
        module.clamp_parameters()
        assert module.P.unique().tolist() == sorted({n - 1 - n // 2 for n in size})
        kernel = module._dense_kernel(module.weight, module.P, module.SIG)
        assert kernel.numel() * module.kernel_count == module.weight.numel() * math.prod(size)
        module.dilated_kernel_size = layer.size
    module.reset_parameters()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@layers
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("method", ["direct", "conv"])
def test_a_layer_follows_its_size(layer: Layer, mode: str, method: str) -> None:
    given = {"padding": "same", "padding_mode": mode, "method": method}
    more = {} if layer.transposed else given
    torch.manual_seed(0)
    fresh = layer.make(dtype=torch.float64, **more)
    module = layer.make(dtype=torch.float64, dilated_kernel_size=2, **more)
    with pytest.warns(UserWarning, match="dilated_kernel_size=.* is loaded into"):
        module.load_state_dict(fresh.state_dict())
    x = layer.input(module, 1)
    module(x)
    module.dilated_kernel_size = layer.size
    assert repr(module) == repr(fresh)
    assert module.kernel_size == fresh.kernel_size
    assert module._reversed_padding_repeated_twice == fresh._reversed_padding_repeated_twice
    want = fresh(x)
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(same(x), want)
        assert_close(same.to_conv()(x), want)


@pytest.mark.parametrize("kind", [im2col.Dcls2d, Dcls2d])
def test_later_settings_of_the_padding_are_obeyed(kind: Any) -> None:
    given = {"padding_mode": "circular", "dilated_kernel_size": (3, 6)}
    module = kind(2, 2, 3, padding=1, **given)
    x = torch.randn(1, 2, 9, 9)
    for padding in ("same", (2, 3)):
        module.padding = padding
        fresh = kind(2, 2, 3, padding=padding, **given)
        fresh.load_state_dict(module.state_dict())
        assert torch.equal(module(x), fresh(x))


@pytest.mark.parametrize("wrong", [0, -1, "5", None, 2.5, (3,), (3, 3, 3), 1 << 60])
def test_wrong_sizes_change_nothing(wrong: Any) -> None:
    module = Dcls2d(1, 1, 1, dilated_kernel_size=(3, 5))
    for change in (module, module.DCK, im2col.Dcls2d(1, 1, 1, dilated_kernel_size=(3, 5))):
        with pytest.raises((TypeError, ValueError), match="dilated_kernel_size"):
            change.dilated_kernel_size = wrong
        assert change.dilated_kernel_size == module.dilated_kernel_size == (3, 5)


@pytest.mark.parametrize(("name", "value"), [("version", "max"), ("dilated_kernel_size", (3, 3))])
def test_a_setting_that_stays_in_the_wrapper_is_an_error(name: str, value: Any) -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    checkpoints.apply_activation_checkpointing(module)
    setattr(module.DCK, name, value)
    for use in (lambda: module(torch.ones(1, 2, 7, 7)), lambda: getattr(module, name)):
        with pytest.raises(RuntimeError, match=f"Set {name} of the layer"):
            use()
    delattr(module.DCK, name)
    setattr(module, name, value)
    assert getattr(module.DCK, name) == value


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace tells of Python that it does not record
def test_a_recorded_builder_refuses_another_setting() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5, version="v1")
    arguments = (module.weight, module.P)
    exported = torch.export.export(module.DCK, arguments).module()
    for program in (torch.jit.trace(module.DCK, arguments), exported):
        replaced(module, program)
        module.version = "v1"
        with pytest.raises(RuntimeError, match=r"version cannot be set.*recorded"):
            module.version = "v0"
        with pytest.raises(RuntimeError, match=r"dilated_kernel_size cannot be set.*recorded"):
            module.dilated_kernel_size = 7
        assert (module.version, module.dilated_kernel_size) == ("v1", (5, 5))


class Mixture(nn.Module):
    """A builder of the user's own, made of two."""

    def __init__(self, *versions: Any) -> None:
        super().__init__()
        self.two = nn.ModuleList(ConstructKernel2d(2, 2, 1, 3, 5, version) for version in versions)

    def forward(self, *args: Any) -> Tensor:
        first, second = (builder(*args) for builder in self.two)
        return first + second


def test_several_builders_agree_or_are_set_one_by_one() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    module.DCK = Mixture("v1", "v1")
    assert module.version == "v1"
    module.version = "max"
    assert [builder.version for builder in module.DCK.two] == ["max", "max"]
    module.DCK = Mixture("v1", "max")
    with pytest.raises(RuntimeError, match=r"several, \['max', 'v1'\]"):
        module.version = "gauss"


def test_the_flat_kernel_follows_its_settings() -> None:
    module = Dcls2dK1d(2, 2, 3, padding="same", padding_mode="reflect", dilated_kernel_size=3)
    module.dilated_kernel_size = 7
    assert module._reversed_padding_repeated_twice == (0, 0, 3, 3)
    assert module(torch.randn(1, 2, 9, 9)).shape == (1, 2, 9, 9)
