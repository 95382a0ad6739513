"""Settings of a convolution that are set later, as on a layer of torch.nn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import LAYERS, Layer

from DCLS import im2col

SETTINGS = {"stride": 2, "padding": 1}
WRONG: list[tuple[str, Any, type[Exception]]] = [
    ("stride", 0, ValueError),
    ("stride", (1, 1, 1, 1), ValueError),
    ("stride", 2**70, ValueError),
    ("padding", -1, ValueError),
    ("padding", "some", ValueError),
    ("padding", None, TypeError),
    ("padding_mode", "border", ValueError),
    ("output_padding", 1.5, TypeError),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_what_is_set_later_is_what_the_constructor_makes(layer: Layer) -> None:
    torch.manual_seed(0)
    later = layer.make()
    torch.manual_seed(0)
    expected = layer.make(**SETTINGS)
    for name, value in SETTINGS.items():
        setattr(later, name, value)
    assert repr(later) == repr(expected)
    x = layer.input(later, 2)
    assert torch.equal(later(x), expected(x))


def test_what_is_set_later_on_an_im2col_layer() -> None:
    torch.manual_seed(0)
    later = im2col.Dcls2d(4, 4, 3, dilated_kernel_size=5)
    torch.manual_seed(0)
    expected = im2col.Dcls2d(4, 4, 3, dilated_kernel_size=5, padding_mode="reflect", **SETTINGS)
    for name, value in {**SETTINGS, "padding_mode": "reflect"}.items():
        setattr(later, name, value)
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(later(x), expected(x))


@pytest.mark.parametrize(("name", "value", "error"), WRONG)
@pytest.mark.parametrize("kind", ["construct", "im2col"])
def test_a_wrong_value_is_refused(kind: str, name: str, value: Any, error: type[Exception]) -> None:
    layer = next(layer for layer in LAYERS if layer.name == "Dcls2d")
    module = layer.make() if kind == "construct" else im2col.Dcls2d(4, 4, 3, dilated_kernel_size=5)
    before = getattr(module, name)
    with pytest.raises(error, match=name):
        setattr(module, name, value)
    assert getattr(module, name) == before


def test_padding_by_the_name_same_keeps_the_stride() -> None:
    layer = next(layer for layer in LAYERS if layer.name == "Dcls2d")
    module = layer.make(padding="same")
    with pytest.raises(ValueError, match="padding='same' takes a stride of 1 only"):
        module.stride = 2
    assert module.stride == (1, 1)
