"""No kernel outlives a change of what it was built from.

Each edit is tried on a layer that has just run, in training and in evaluation, and the next output
is compared with that of a new layer that never ran before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from torch import nn
from torch.nn.utils import parametrize

import DCLS

NAMES = ("weight", "P", "SIG", "bias")


def in_place(module: Any) -> None:
    with torch.no_grad():
        for name in NAMES:
            getattr(module, name).add_(0.3)


def in_place_of_a_view(module: Any) -> None:
    with torch.no_grad():
        module.P[0].view(-1)[0] += 0.7
        module.weight.view(-1)[-1] = 5


def data(module: Any) -> None:
    for name in NAMES:
        getattr(module, name).data.mul_(0.5)


def new_data(module: Any) -> None:
    for name in NAMES:
        parameter = getattr(module, name)
        parameter.data = parameter.data - 0.4


def numpy_memory(module: Any) -> None:
    # No version counter of torch sees this.
    module.P.detach().numpy()[...] += 0.6


def optimizer(module: Any) -> None:
    for name in NAMES:
        parameter = getattr(module, name)
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(module.parameters(), lr=0.2).step()


def reassign(module: Any) -> None:
    for name in NAMES:
        setattr(module, name, nn.Parameter(getattr(module, name).detach() + 0.3))


def reassign_in_memory_just_freed(module: Any) -> None:
    # The allocator gives the same address again: no key for a cache.
    for _ in range(3):
        shape, dtype = module.P.shape, module.P.dtype
        module.P = None
        module.P = nn.Parameter(torch.zeros(shape, dtype=dtype))


def load(module: Any) -> None:
    state = {name: value + 0.3 for name, value in module.state_dict().items()}
    module.load_state_dict(state, strict=True)


def load_by_assignment(module: Any) -> None:
    state = {name: value + 0.3 for name, value in module.state_dict().items()}
    module.load_state_dict(state, strict=True, assign=True)


def version(module: Any) -> None:
    module.version = "v0"


def version_of_the_builder(module: Any) -> None:
    module.DCK.version = "max"


def clamp(module: Any) -> None:
    with torch.no_grad():
        module.P.mul_(50)
    module.clamp_parameters()


def reset(module: Any) -> None:
    torch.manual_seed(11)
    module.reset_parameters()


class Halved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def parametrized(module: Any) -> None:
    parametrize.register_parametrization(module, "P", Halved())


def to_half_and_back(module: Any) -> None:
    module.half().double()


def unfrozen(module: Any) -> None:
    module.requires_grad_(False)
    module.P.add_(0.4)
    module.requires_grad_(True)


EDITS: list[Callable[[Any], None]] = [
    in_place,
    in_place_of_a_view,
    data,
    new_data,
    numpy_memory,
    optimizer,
    reassign,
    reassign_in_memory_just_freed,
    load,
    load_by_assignment,
    version,
    version_of_the_builder,
    clamp,
    reset,
    parametrized,
    to_half_and_back,
    unfrozen,
]
MODES = ("training", "evaluation", "no_grad", "inference")


def call(module: nn.Module, x: torch.Tensor, mode: str) -> torch.Tensor:
    module.train(mode == "training")
    if mode == "no_grad":
        with torch.no_grad():
            return module(x)
    if mode == "inference":
        with torch.inference_mode():
            return module(x)
    return module(x)


@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_shows_in_the_next_output(
    layer: Layer, edit: Callable[[Any], None], frozen: bool
) -> None:
    for mode in MODES:
        torch.manual_seed(0)
        module = layer.make(version="gauss", groups=2, dtype=torch.float64)
        if frozen:
            DCLS.freeze(module)
        with torch.no_grad():
            module.P.uniform_(-3, 3)
        x = layer.input(module, 1)
        before = call(module, x, mode)
        assert torch.equal(call(module, x, mode), before)
        edit(module)
        after = call(module, x, mode)
        assert (after - before).abs().max() > 1e-6 * before.abs().max(), mode
        assert_close(after.clone(), layer.torch_twin(module)(x).detach())


@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_gradients_are_those_of_the_present_parameters(layer: Layer) -> None:
    torch.manual_seed(1)
    module = layer.make(version="gauss", dtype=torch.float64)
    x = layer.input(module, 1)
    module(x).sum().backward()
    in_place(module)
    module.zero_grad()
    module(x).square().sum().backward()
    fresh = layer.make(version="gauss", dtype=torch.float64)
    fresh.load_state_dict(module.state_dict())
    fresh(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, fresh.get_parameter(name).grad), name


@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_a_change_of_dtype_or_device_leaves_nothing_behind(layer: Layer, device: str) -> None:
    module = layer.make().eval()
    x = layer.input(module, 1)
    with torch.no_grad():
        want = module(x)
        for dtype, relative in ((torch.float64, 1e-5), (torch.bfloat16, 0.05)):
            got = module.to(device, dtype)(x.to(device, dtype))
            assert (got.dtype, got.device.type) == (dtype, device)
            assert_close(got.cpu().float(), want, relative)
        module.to("cpu", torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
        assert module(x).dtype == torch.float32


@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_a_copy_and_its_original_go_apart(layer: Layer) -> None:
    module = layer.make(version="gauss", dtype=torch.float64).eval()
    x = layer.input(module, 1)
    before = module(x)
    twin = copy.deepcopy(module)
    in_place(twin)
    assert torch.equal(module(x), before)
    assert not torch.equal(twin(x), before)
