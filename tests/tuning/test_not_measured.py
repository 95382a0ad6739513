"""Where a forward pass must not measure, and what it takes there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from tuning_problem import FAST_CHOICE, PROBLEM, Bench, find, make_bench

from DCLS.tuning import facts, lookup, set_tuning, state
from DCLS.tuning.problem import bucket


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return make_bench(monkeypatch)


def compiling(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.compiler, "is_compiling", lambda: True)


def with_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.distributed, "is_initialized", lambda: True)
    patch.setattr(torch.distributed, "get_world_size", lambda: 2)


@pytest.fixture
def forbidden() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def assert_not_measured(bench: Bench, why: str, *tensors: Tensor) -> None:
    choice, why_not = find(PROBLEM, *tensors)
    assert choice is None
    assert why in why_not
    assert bench.measured == []


def test_not_while_torch_compiles(bench: Bench, forbidden: pytest.MonkeyPatch) -> None:
    compiling(forbidden)
    assert_not_measured(bench, "compiles")


def test_not_while_it_traces(bench: Bench) -> None:
    def traced(x: Tensor) -> Tensor:
        assert_not_measured(bench, "traces", x)
        return x + 1

    torch.jit.trace(traced, torch.zeros(1), check_trace=False)


def test_not_while_it_exports(bench: Bench, forbidden: pytest.MonkeyPatch) -> None:
    forbidden.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_not_measured(bench, "exports")


def test_not_while_a_graph_is_captured(bench: Bench, forbidden: pytest.MonkeyPatch) -> None:
    forbidden.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    class OnTheGpu(Tensor):
        is_cuda = True

    forbidden.setattr(facts, "Tensor", OnTheGpu)
    assert_not_measured(bench, "captured", torch.zeros(1).as_subclass(OnTheGpu))


def test_not_in_a_process_group(bench: Bench, forbidden: pytest.MonkeyPatch) -> None:
    with_others(forbidden)
    assert_not_measured(bench, "DCLS.tune measures for all")


def test_not_under_fake_tensors(bench: Bench) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        assert_not_measured(bench, "dispatch mode", torch.zeros(1))
    assert_not_measured(bench, "subclass", mode.from_tensor(torch.zeros(1)))


def test_not_under_functorch(bench: Bench) -> None:
    def function(x: Tensor) -> Tensor:
        assert_not_measured(bench, "torch.func", x)
        return x.sum()

    torch.func.grad(function)(torch.zeros(2))
    torch.func.vmap(function)(torch.zeros(2, 2))
    torch.func.jvp(function, (torch.zeros(2),), (torch.ones(2),))


def test_not_in_forward_mode(bench: Bench) -> None:
    with torch.autograd.forward_ad.dual_level():
        assert_not_measured(bench, "forward-mode")


def test_what_was_measured_before_serves_there(bench: Bench, forbidden: pytest.MonkeyPatch) -> None:
    find()
    compiling(forbidden)
    assert find()[0] == FAST_CHOICE
    other, _ = find(PROBLEM._replace(spatial=(28, 28)))
    assert other is not None
    assert (other.method, other.source) == ("direct", "measured here")
    assert len(bench.measured) == 1


def test_a_layer_on_a_gpu_asks(bench: Bench) -> None:
    """As far as it goes without one: a fake GPU, on which nothing may be measured."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from DCLS import Dcls2d

    settings = {"dilated_kernel_size": 17, "padding": 8, "groups": 96, "version": "v1"}
    layer = Dcls2d(96, 96, 34, device="meta", **settings)
    with FakeTensorMode():
        for name, value in list(layer.named_parameters()):
            setattr(layer, name, torch.nn.Parameter(torch.empty(value.shape, device="cuda")))

        def image(batch: int, height: int) -> Tensor:
            return torch.empty(batch, 96, height, 56, device="cuda", requires_grad=True)

        x = image(100, 56)
        choice = layer.explain(x)
        assert (choice.method, choice.source) == ("direct", "model")
        assert choice.reason.endswith("; not measured: a dispatch mode is active")
        flags = facts.flags("cuda")
        lookup.resolve(PROBLEM._replace(flags=flags), 100, None)
        (problem,) = state.exact
        assert problem.geometry.cells == bucket(136)
        assert layer.explain(x) == FAST_CHOICE
        assert layer.explain(image(80, 56)) == FAST_CHOICE  # in the same bucket
        assert layer.explain(image(100, 55)) == FAST_CHOICE  # not measured: the latest
        with torch.no_grad():
            assert layer.explain(x).source == "model"
        set_tuning("off")
        assert layer.explain(x).reason.endswith("; not measured: DCLS_TUNING is off")
    assert len(bench.measured) == 1
