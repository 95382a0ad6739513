"""Frozen layers keep their kernels, and never a stale one."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from layers import FORWARD, TRANSPOSED, Layer, assert_close, layer_id
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

import DCLS
from DCLS.im2col.modules import Dcls2d as Im2colDcls2d


def count_builds(layer: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls of the builder; a list that grows."""
    calls: list[int] = []
    kind = type(layer.DCK)
    build = kind._build

    def counting(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not kwargs.get("return_support"):
            calls.append(1)
        return build(self, *args, **kwargs)

    monkeypatch.setattr(kind, "_build", counting)
    return calls


@pytest.mark.parametrize(
    ("layer", "method"),
    [(layer, "auto") for layer in TRANSPOSED]
    + [(layer, method) for layer in FORWARD for method in ("conv", "direct")],
    ids=lambda value: value if isinstance(value, str) else layer_id(value),
)
def test_one_kernel_for_many_forwards(
    layer: Layer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = layer.make(version="gauss", dtype=torch.float64)
    module.method = method
    x = layer.input(module, 2)
    with torch.no_grad():
        want = module(x)
        assert DCLS.freeze(module) is module
        calls = count_builds(module, monkeypatch)
        for _ in range(3):
            assert_close(module(x), want, 1e-12)
        assert len(calls) == 1
        module.P += 0.3
        changed = module(x)
        assert not torch.equal(changed, want)
        assert len(calls) == 2
        with torch.inference_mode():
            assert torch.equal(module(x), changed)
        assert len(calls) == 2
        DCLS.freeze(module, enabled=False)
        assert_close(module(x), changed, 1e-12)


@pytest.mark.parametrize("layer", FORWARD, ids=layer_id)
def test_one_set_of_lists_for_inputs_of_one_size(layer: Layer) -> None:
    """Whatever changes, the output is that of a layer that keeps nothing."""
    module = layer.make(version="v1")
    module.method = "direct"
    plain = copy.deepcopy(module)
    DCLS.freeze(module)

    def lists() -> Any:
        return module._kernel_cache._kept.built._dcls_lists._kept[1]

    last = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}
    x = layer.input(module, 2)
    with torch.inference_mode():
        assert torch.equal(module(x), plain(x))
        first = lists()
        for _ in range(2):
            assert torch.equal(module(x * 2), plain(x * 2))
            assert lists() is first
        for other in (x[:1], torch.cat([x, x], 2), x.to(memory_format=last[x.ndim])):
            assert torch.equal(module(other), plain(other))
        assert torch.equal(module(x), plain(x))
        before = lists()
        for m in (module, plain):
            m.weight += 1
        assert torch.equal(module(x), plain(x))
        assert lists() is not before
        # Nobody should, but who edits the kernel gets what it says.
        module._kernel_cache._kept.built.zero_()
        if module.bias is not None:
            module.bias.zero_()
        assert not module(x).any()


def test_lists_and_threads() -> None:
    """Threads with inputs of different sizes take the lists from each other, and are right."""
    module = DCLS.freeze(DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=5, method="direct"))
    inputs = [torch.randn(1, 2, size, 9) for size in (8, 9, 10, 11)]
    with torch.inference_mode():
        want = [module(x) for x in inputs]

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [module(x) for _ in range(50)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        for got, expected in zip(pool.map(run, inputs), want, strict=True):
            assert all(torch.equal(each, expected) for each in got)


def test_gradients_never_come_from_a_kept_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=5, dtype=torch.float64)
    twin = copy.deepcopy(module)
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    DCLS.freeze(module)
    with torch.inference_mode():
        module(x)
    for m in (module, twin):
        m(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, twin.get_parameter(name).grad), name
    # Without gradients of the parameters there may be one of the input, whose kernel is kept.
    module.requires_grad_(False)
    calls = count_builds(module, monkeypatch)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for m, leaf in zip((module, twin), leaves, strict=True):
        m(leaf).square().sum().backward()
    assert_close(leaves[0].grad, leaves[1].grad, 1e-12)
    for _ in range(2):
        module(leaves[0]).sum().backward()
    assert len(calls) <= 2  # one of the module, and one of the twin if it took two operators


def test_settings_autocast_and_half(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DCLS.freeze(DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=5, method="conv"))
    plain = copy.deepcopy(module)
    DCLS.freeze(plain, False)
    x = torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(module(x), plain(x))
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(module(x), plain(x))
            for m in (module, plain):
                m.dilated_kernel_size = 7 if m.dilated_kernel_size == (5, 5) else 5
            assert torch.equal(module(x), plain(x))
        module.double()
        plain.double()
        assert torch.equal(module(x.double()), plain(x.double()))


def edits(model: nn.Module) -> Iterator[str]:
    """What the toolkit does to a model."""
    layer = model[0]
    schedule = DCLS.WidthSchedule(model, 3.0, steps=2)
    tracker = DCLS.PositionTracker(model)
    yield "a first width"
    schedule.step()
    yield "WidthSchedule.step"
    schedule.load_state_dict({**schedule.state_dict(), "last_step": 2})
    yield "WidthSchedule.load_state_dict"
    with DCLS.integer_positions(model):
        yield "integer_positions"
        with torch.no_grad():
            layer.P.add_(1)
        yield "an edit inside"
    yield "after integer_positions"
    layer.set_positions(4 * layer.positions())
    yield "set_positions"
    DCLS.clamp_(model)
    yield "clamp_"
    optimizer = torch.optim.SGD(DCLS.param_groups(model, 0.5))
    DCLS.clamp_after_step(optimizer, model)
    DCLS.losses.repulsion(model).backward()
    layer.kernel().square().sum().backward()
    optimizer.step()
    yield "a step"
    tracker.update()
    layer.reset_parameters()
    yield "reset_parameters"
    DCLS.round_(model)
    yield "round_"


@pytest.mark.parametrize("method", ["conv", "direct"])
def test_no_tool_leaves_a_stale_kernel(method: Any) -> None:
    torch.manual_seed(0)
    layers = [
        DCLS.Dcls2d(
            2, 2, 3, dilated_kernel_size=7, padding=3, method=method, init_positions="spread"
        )
        for _ in range(2)
    ]
    layers[1].P, layers[1].SIG = layers[0].P, layers[0].SIG
    model = DCLS.freeze(nn.Sequential(*layers))
    x = torch.randn(1, 2, 9, 9)
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        model(x)
    for what in edits(model):
        fresh = DCLS.freeze(copy.deepcopy(model), enabled=False)
        with torch.no_grad():
            for _ in range(2):
                got = model(x)
                assert_close(got, fresh(x), 1e-6)
                assert_close(DCLS.fold(model)(x), got, 1e-5)
        if what == "after integer_positions":
            assert torch.equal(got, seen[2]), "not as before it"
        else:
            assert all(not torch.equal(got, other) for other in seen), what
        seen.append(got)


def test_copies_files_and_state_dicts() -> None:
    module = DCLS.freeze(nn.Sequential(DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=5)))
    x = torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        want = module(x)
        assert set(module.state_dict()) == {"0.weight", "0.P", "0.SIG", "0.bias"}
        twin = copy.deepcopy(module)
        assert twin[0]._kernel_cache is not module[0]._kernel_cache
        twin[0].P.add_(0.3)
        assert not torch.equal(twin(x), want)
        assert torch.equal(module(x), want)
        file = io.BytesIO()
        torch.save(module, file)
        assert len(file.getvalue()) < 6000
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), want)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_must_build_each_time_does() -> None:
    module = DCLS.freeze(DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=5))
    x = torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        want = module(x)
        handle = module.DCK.register_forward_hook(lambda _, __, kernel: 2 * kernel)
        twice = module(x)
        assert not torch.allclose(twice, want)
        handle.remove()
        assert torch.equal(module(x), want)
        P = torch.stack([module.P, module.P + 0.4])
        many = torch.vmap(lambda p: torch.func.functional_call(module, {"P": p}, (x,)))(P)
        assert_close(many[0], want, 1e-5)
        assert not torch.allclose(many[1], want)
        traced = torch.jit.trace(module, x)
        module.P += 0.4
        assert_close(traced(x), module(x), 1e-5)
        assert_close(many[1], module(x), 1e-5)


def test_freed_memory_is_named() -> None:
    module, x = DCLS.freeze(DCLS.Dcls1d(2, 2, 3, dilated_kernel_size=5)), torch.randn(1, 2, 9)
    with torch.no_grad():
        module(x)
        module.weight.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="must have memory"):
            module(x)


def test_tangents_are_those_of_a_layer_that_is_not_frozen() -> None:
    module, x = DCLS.Dcls1d(2, 2, 3, dilated_kernel_size=5), torch.randn(1, 2, 9)

    def tangent() -> torch.Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            P = forward_ad.make_dual(module.P.detach(), torch.ones_like(module.P))
            return forward_ad.unpack_dual(functional_call(module, {"P": P}, (x,))).tangent

    want = tangent()
    DCLS.freeze(module)
    with torch.no_grad():
        module(x)
    assert torch.equal(tangent(), want)


def test_the_axis_of_a_line_in_a_plane_may_change() -> None:
    module = DCLS.freeze(DCLS.Dcls2dK1d(2, 2, 3, dilated_kernel_size=5))
    x = torch.randn(1, 2, 9, 9)
    with torch.no_grad():
        assert module(x).shape[2:] == (5, 9)
        module.flat_dim = 1
        assert module(x).shape[2:] == (9, 5)


def test_whole_models_and_bad_arguments() -> None:
    model = nn.Sequential(Im2colDcls2d(2, 2, 3, dilated_kernel_size=5, padding=2), nn.ReLU())
    x = torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        want = model(x)
        assert torch.equal(DCLS.freeze(model)(x), want)
    assert type(DCLS.fold(model)[0]) is nn.Conv2d
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got list"):
        DCLS.freeze([model])
    with pytest.raises(TypeError, match="enabled must be a bool"):
        DCLS.freeze(model, "no")
    with pytest.raises(ValueError, match="must have a DCLS layer"):
        DCLS.freeze(nn.Linear(2, 2))
