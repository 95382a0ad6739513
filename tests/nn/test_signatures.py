"""What the layers tell about their arguments: signatures, types, help, repr and one warning."""

from __future__ import annotations

import inspect
import pydoc
import re
import typing
import warnings
from typing import Any

import pytest
from layers import LAYERS, Layer, layer_id

import DCLS
from DCLS import _checks, _spec, _types, im2col, method
from DCLS.construct import modules

KINDS = {name: getattr(modules, name) for name in modules.__all__}
KINDS |= {f"im2col.{name}": getattr(im2col.modules, name) for name in im2col.modules.__all__}
CONVOLUTIONS = [kind for name, kind in KINDS.items() if "Construct" not in name]
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


def test_literals_are_the_lists_of_names() -> None:
    assert typing.get_args(_types.Version) == tuple(_spec.VERSIONS)
    assert typing.get_args(_types.Method) == method.METHODS
    assert typing.get_args(_types.PaddingMode) == _checks.PADDING_MODES


@kinds
def test_names_have_literal_types(kind: type) -> None:
    hints = typing.get_type_hints(kind.__init__)
    literals = {
        "version": _types.Version,
        "method": _types.Method,
        "padding_mode": _types.PaddingMode,
    }
    assert "version" in hints
    for name in literals.keys() & hints.keys():
        assert hints[name] == literals[name], name
    for name in ("version", "method"):
        if isinstance(member := getattr(kind, name, None), property):
            assert typing.get_type_hints(member.fget)["return"] == literals[name]


@kinds
def test_help_describes_every_argument(kind: type) -> None:
    text = pydoc.plain(pydoc.render_doc(kind))
    described = re.findall(r"^ \|          (\w+): ", inspect_arguments(text), re.MULTILINE)
    assert described == list(inspect.signature(kind).parameters)
    assert not re.search(r"[Aa]rguments.* as :class:", text)


def inspect_arguments(text: str) -> str:
    """Cuts the arguments of the constructor out of what help prints."""
    constructor = text[text.index(" |  __init__(") :]
    return constructor[constructor.index("Args:") : constructor.index("Raises:")]


@layers
def test_the_repr_is_made_of_arguments(layer: Layer) -> None:
    for more in ({}, {"dilated_kernel_size": 1, "kernel_count": 1}):
        module = layer.make(**more)
        text = module.extra_repr()
        assert f"stride={module.stride}, version={module.version}" in text
        assert f"kernel_count={module.kernel_count}, " in text
        assert f"dilated_kernel_size={module.dilated_kernel_size}" in text
        assert (f"dense_kernel_size={module.dense_kernel_size}" in text) == bool(layer.dense)
        names = set(re.findall(r"(\w+)=", text))
        assert names <= inspect.signature(type(module)).parameters.keys()
        assert f"dilated_kernel_size={module.dilated_kernel_size}" in module.DCK.extra_repr()


def test_the_repr_names_what_differs_from_the_defaults() -> None:
    module = DCLS.Dcls2d(
        4, 6, 3, 2, 1, 5, 2, False, "circular", "v1", method="conv"
    )  # as in 0.1.1, size, groups and all others by position
    assert module.extra_repr() == (
        "4, 6, kernel_count=3, stride=(2, 2), version=v1, padding=(1, 1), "
        "dilated_kernel_size=(5, 5), groups=2, bias=False, padding_mode=circular, method=conv"
    )


class Sub(DCLS.Dcls2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class SubSub(Sub):
    def __init__(self, *args: Any) -> None:
        self.more = [super(SubSub, self).__init__(*args) for _ in range(1)]


MESSAGE = (
    r"has kernel_count=9 elements .*dilated_kernel_size=1\. The fourth argument is the stride, "
    r"here \(17, 17\), as in DCLS 0\.1\.1; pass the size by name: dilated_kernel_size="
)


def user(kind: Any) -> Any:
    return kind(32, 32, 9, 17)


@pytest.mark.parametrize(
    "kind", [DCLS.Dcls2d, im2col.modules.Dcls2d, DCLS.DclsTranspose2d, DCLS.Dcls2_1d, Sub, SubSub]
)
def test_a_size_in_the_place_of_the_stride_is_told_at_the_line_that_does_it(kind: Any) -> None:
    with pytest.warns(UserWarning, match=f"^{kind.__name__} {MESSAGE}") as caught:
        user(kind)
    line = user.__code__.co_firstlineno + 1
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


def test_the_warning_comes_once_for_each_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            user(DCLS.Dcls2d)
        Sub(32, 32, 9, 17)
    assert len(caught) == 2


@layers
def test_one_point_for_several_elements_is_the_only_case_that_warns(layer: Layer) -> None:
    with pytest.warns(UserWarning, match="kernel_count=3 elements"):
        layer.make(dilated_kernel_size=1)
    layer.make(dilated_kernel_size=1, kernel_count=1)
    if len(layer.size) > 1:
        layer.make(dilated_kernel_size=(1,) * (len(layer.size) - 1) + (2,))
    modules.ConstructKernel1d(1, 1, 1, 3, 1, "v1")
