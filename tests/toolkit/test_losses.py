"""DCLS.losses.repulsion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from toolkit.models import Net, layers_of
from torch import Tensor, nn

import DCLS
from DCLS import Dcls1d, Dcls2d, losses
from DCLS.im2col import modules as im2col


def by_hand(P: Tensor) -> Tensor:
    """``2 sum relu(1 - |p_i - p_j|) / (K (K - 1) C)``, written as the authors' trainers do."""
    P = P.flatten(1, -2).permute(1, 2, 0)
    C, K, _ = P.shape
    distances = torch.cdist(P, P, p=2, compute_mode="donot_use_mm_for_euclid_dist")
    return 2 * (1 - distances).triu(diagonal=1).clamp_min(0).sum() / (K * (K - 1) * C)


@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_the_formula_and_its_gradient(layer: Layer) -> None:
    module = layer.make(dtype=torch.float64)
    got, want = losses.repulsion(module), by_hand(module.P).square()
    assert got.shape == ()
    assert_close(got, want)
    assert_close(*(torch.autograd.grad(loss, module.P)[0] for loss in (got, want)))


def test_the_mean_over_layers_with_shared_positions_once() -> None:
    model = Net().double()
    terms = torch.stack([by_hand(stage[0].depthwise.P) for stage in model.stages])
    assert_close(losses.repulsion(model), terms.square().mean())
    assert_close(losses.repulsion(model, "mean"), terms.mean().square())
    apart = Net(share=False).double()
    every = torch.stack([by_hand(layer.P) for layer in layers_of(apart)])
    assert_close(losses.repulsion(apart), every.square().mean())


@pytest.mark.parametrize("pairs", [1, 50, 400])
def test_in_parts(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net().double()
    want = losses.repulsion(model)
    wanted = torch.autograd.grad(want, model.stages[0][0].depthwise.P)[0]
    monkeypatch.setattr(losses, "_PAIRS", pairs)
    got = losses.repulsion(model)
    assert_close(got, want)
    assert_close(torch.autograd.grad(got, model.stages[0][0].depthwise.P)[0], wanted)


def test_the_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_PAIRS", 1 << 14)
    held = []
    for count in (256, 1024):
        layer = Dcls2d(1, 1, count, dilated_kernel_size=31)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = losses.repulsion(layer)
        held.append(sum(kept.values()))
        loss.backward()
        assert layer.P.grad.isfinite().all()
    assert held[1] < 8 * 1024 * 2 * 4, held


def test_elements_at_one_place_have_no_direction() -> None:
    layer = Dcls2d(1, 1, 3, dilated_kernel_size=5)
    with torch.no_grad():
        layer.P.zero_()
        layer.P[0, ..., 2] = 0.5
    loss = losses.repulsion(layer)
    loss.backward()
    assert loss.item() == pytest.approx(((1 + 0.5 + 0.5) / 3) ** 2)
    assert layer.P.grad.isfinite().all()
    assert layer.P.grad[0, 0, 0, 2] < 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    layer = Dcls2d(3, 3, 4, dilated_kernel_size=5).to(dtype)
    loss = losses.repulsion(layer)
    assert loss.dtype == torch.float32
    assert_close(loss, by_hand(layer.P.float()).square(), 1e-5)
    loss.backward()
    assert layer.P.grad.dtype == dtype


def test_layers_with_one_element_do_not_count() -> None:
    one, more = (
        Dcls1d(2, 2, 1, dilated_kernel_size=5),
        im2col.Dcls1d(2, 2, 3, dilated_kernel_size=5),
    )
    alone = losses.repulsion(one)
    assert alone.item() == 0
    alone.backward()
    assert (one.P.grad == 0).all()
    assert torch.equal(losses.repulsion(nn.Sequential(one, more)), losses.repulsion(more))


def test_training_pushes_elements_apart() -> None:
    model = Net()
    optimizer = torch.optim.SGD([s[0].depthwise.P for s in model.stages], 1.0)
    before = losses.repulsion(model).item()
    for _ in range(20):
        optimizer.zero_grad()
        losses.repulsion(model).backward()
        optimizer.step()
    assert losses.repulsion(model).item() < 0.5 * before


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_PAIRS", 100)
    model = Net().double()
    compiled = torch.compile(lambda: losses.repulsion(model), backend="aot_eager", fullgraph=True)
    P = model.stages[1][0].depthwise.P
    got, want = compiled(), losses.repulsion(model)
    assert_close(got, want)
    assert_close(*(torch.autograd.grad(loss, P)[0] for loss in (got, want)))


def test_bad_arguments() -> None:
    wrong: Any
    for wrong in (None, torch.zeros(2, 3)):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
            losses.repulsion(wrong)
    with pytest.raises(ValueError, match="model must have a DCLS layer"):
        DCLS.losses.repulsion(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="square must be one of each, mean"):
        losses.repulsion(Net(), "all")  # type: ignore[arg-type]
