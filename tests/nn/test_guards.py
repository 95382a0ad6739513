"""Another kernel than the saved one, and tools that need a folded model, are named."""

from __future__ import annotations

import copy
import functools
import io
import threading
import warnings
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from torch import Tensor, nn

import DCLS
from DCLS import Dcls1d, Dcls2d
from DCLS.delays import DelayLinear
from DCLS.im2col import modules as im2col

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


def reloaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@layers
def test_the_same_kernel_loads_silently(layer: Layer) -> None:
    module = layer.make()
    for state in (module.state_dict(), reloaded(module.state_dict())):
        layer.make().load_state_dict(state, strict=True)


@layers
def test_another_size_or_version_warns_with_both(layer: Layer) -> None:
    larger = tuple(size + 2 for size in layer.size)
    state = reloaded(layer.make(version="max").state_dict())
    module = layer.make(version="gauss")
    with pytest.warns(UserWarning, match="version=max is loaded into .* version=gauss") as record:
        module.load_state_dict(state, strict=True)
    assert len(record) == 1
    assert record[0].filename == __file__
    module = layer.make(version="max", dilated_kernel_size=larger)
    with pytest.warns(UserWarning, match="the positions mean another kernel") as record:
        module.load_state_dict(state, strict=True)
    assert len(record) == 1
    text = str(record[0].message)
    assert f"dilated_kernel_size={layer.size} is" in text
    assert f"dilated_kernel_size={larger}:" in text
    assert torch.equal(module.P, state["P"])


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(DelayLinear, 3, 2, 8),
        functools.partial(Dcls1d, 3, 2, 4, dilated_kernel_size=9, padding=4),
    ],
)
def test_a_rounded_layer_loads_into_one_of_its_version(make: Any) -> None:
    rounded = make()
    with torch.no_grad():
        rounded.SIG.fill_(2)
    DCLS.round_(rounded)
    state, x = reloaded(rounded.state_dict()), torch.randn(20, 3, 3)
    assert "SIG" in state
    new = make()
    with pytest.warns(UserWarning, match="version=v1 is .*version = 'v1' first; DCLS.round_"):
        new.load_state_dict(state)
    new.version = "v1"
    for layer in (new, make(version="v1")):
        layer.load_state_dict(state)
        assert torch.equal(layer(x), rounded(x))
    with (
        pytest.raises(RuntimeError, match="SIG"),
        pytest.warns(UserWarning, match="another kernel"),
    ):
        make(version="v1").load_state_dict(make().state_dict())


def test_once_for_a_model_and_again_for_the_next_load() -> None:
    def make(size: int) -> nn.Module:
        return nn.Sequential(*(Dcls1d(1, 1, 2, dilated_kernel_size=size) for _ in range(3)))

    state, model = make(5).state_dict(), make(7)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"Dcls1d 0: .*\(5,\) is .*\(7,\)") as record:
            model.load_state_dict(state)
        assert len(record) == 1


def test_once_for_each_of_two_loads_in_two_threads() -> None:
    def make(size: int) -> nn.Sequential:
        return nn.Sequential(*(Dcls1d(1, 1, 2, dilated_kernel_size=size) for _ in range(3)))

    state, model, other = make(5).state_dict(), make(7), make(7)

    def load_the_other(*args: Any) -> None:
        thread = threading.Thread(target=other.load_state_dict, args=(state,))
        thread.start()
        thread.join()

    model[1]._register_load_state_dict_pre_hook(load_the_other)
    with pytest.warns(UserWarning, match=r"Dcls1d 0: .*\(5,\) is .*\(7,\)") as record:
        model.load_state_dict(state)
    assert len(record) == 2


def test_of_im2col_layers() -> None:
    state = im2col.Dcls2d(2, 2, 3, dilated_kernel_size=(3, 5)).state_dict()
    im2col.Dcls2d(2, 2, 3, dilated_kernel_size=(3, 5)).load_state_dict(state)
    with pytest.warns(UserWarning, match=r"\(3, 5\) is .*\(5, 3\)"):
        im2col.Dcls2d(2, 2, 3, dilated_kernel_size=(5, 3)).load_state_dict(state)


@pytest.mark.parametrize("size", [5, 7])
def test_dicts_without_metadata_load_silently_and_ours_have_no_more_keys(size: int) -> None:
    module = Dcls2d(1, 1, 2, dilated_kernel_size=5)
    state = module.state_dict()
    assert list(state) == ["weight", "P", "SIG", "bias"]
    # A plain dict, as of 0.1.1's files once something rewrote them; and its own metadata.
    old = copy.copy(state)
    old._metadata = {"": {"version": 1}, "DCK": {"version": 1}}
    for other in (dict(state), old):
        Dcls2d(1, 1, 2, dilated_kernel_size=size).load_state_dict(other, strict=True)
    # What 0.1.1 does with ours: torch's own loading, which ignores what it does not know.
    nn.Module._load_from_state_dict(module, state, "", state._metadata[""], True, [], [], [])


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Dcls1d(1, 1, 2, dilated_kernel_size=5, padding=2)
        self.potential: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.potential = self.potential + self.layer(x)
        return self.potential


def test_folding_a_model_with_a_state_that_carries_a_graph() -> None:
    model, x = Remembers(), torch.randn(1, 1, 9)
    model(x)
    with pytest.raises(RuntimeError, match=r"(?s)model cannot be copied.*inplace=True"):
        DCLS.fold(model)
    assert isinstance(model.layer, Dcls1d)
    want = copy.deepcopy(model.layer)(x)
    model.potential = model.potential.detach()
    assert_close(DCLS.fold(model).layer(x), want, 1e-5)
    model(x)
    assert_close(DCLS.fold(model, inplace=True).layer(x), want, 1e-5)


@pytest.mark.parametrize("make", [Dcls1d, im2col.Dcls1d, DCLS.DclsTranspose1d])
def test_scripting_an_unfolded_model_names_the_way_out(make: Any) -> None:
    model = nn.Sequential(make(2, 2, 3, dilated_kernel_size=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script\. Give it DCLS\.fold\(model\)"):
            torch.jit.script(model)
        x = torch.randn(1, 2, 9)
        assert_close(torch.jit.script(DCLS.fold(model))(x), model(x), 1e-5)


@pytest.mark.parametrize("make", [Dcls1d, im2col.Dcls1d, DCLS.DclsTranspose1d])
@pytest.mark.parametrize("dynamo", [True, False])
def test_exporting_an_unfolded_model_to_onnx_names_the_way_out(make: Any, dynamo: bool) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = nn.Sequential(make(2, 2, 3, dilated_kernel_size=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match=r"ONNX.*Export DCLS\.fold\(model\)"):
            torch.onnx.export(model, (torch.randn(1, 2, 9),), io.BytesIO(), dynamo=dynamo)
