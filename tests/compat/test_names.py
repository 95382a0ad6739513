"""Every name that older code imports, calls or pickles: of DCLS 0.1.1, and of its successor.

The lists are written down here, so that no change of the package changes them with it.
"""

from __future__ import annotations

import inspect
import pickle
from importlib import import_module
from typing import Any

import pytest
import torch

import DCLS

REQUIRED = inspect.Parameter.empty

# The arguments of DCLS 0.1.1 in its order, each with its default.
CHANNELS = {"in_channels": REQUIRED, "out_channels": REQUIRED, "kernel_count": REQUIRED}
PLACE = {"stride": 1, "padding": 0}
REST = {"groups": 1, "bias": True, "padding_mode": "zeros", "version": "gauss"}
CONV = {**CHANNELS, **PLACE, "dilated_kernel_size": 1, **REST}
BUILDER = dict.fromkeys(
    ["out_channels", "in_channels", "groups", "kernel_count", "dilated_kernel_size", "version"],
    REQUIRED,
)
BASE = dict.fromkeys([
    "in_channels", "out_channels", "kernel_count", "stride", "padding", "dilated_kernel_size",
    "transposed", "output_padding", "groups", "bias", "padding_mode", "version",
], REQUIRED)  # fmt: skip


def insert(arguments: dict[str, Any], before: str, **more: Any) -> dict[str, Any]:
    """Returns the arguments with ``more`` ahead of one of them."""
    at = list(arguments).index(before)
    items = list(arguments.items())
    return dict([*items[:at], *more.items(), *items[at:]])


CONV_N_M = insert(CONV, "dilated_kernel_size", dense_kernel_size=1)
BUILDER_N_M = insert(BUILDER, "dilated_kernel_size", dense_kernel_size=REQUIRED)
OF_0_1_1 = {
    "Dcls1d": CONV,
    "Dcls2d": {**CONV, "use_implicit_gemm": True},
    "Dcls3d": CONV,
    "Dcls2dK1d": {**CONV, "version": "v1", "flat_dim": 0},
    "Dcls3_1d": CONV_N_M,
    "ConstructKernel1d": BUILDER,
    "ConstructKernel2d": BUILDER,
    "ConstructKernel3d": BUILDER,
    "ConstructKernel3_1d": BUILDER_N_M,
    "_DclsNd": BASE,
    "_DclsN_Md": insert(BASE, "dilated_kernel_size", dense_kernel_size=REQUIRED),
}
TRANSPOSED = insert(CONV, "dilated_kernel_size", output_padding=0)
SINCE = {
    "Dcls2_1d": CONV_N_M,
    "Dcls3_2d": CONV_N_M,
    "ConstructKernel2_1d": BUILDER_N_M,
    "ConstructKernel3_2d": BUILDER_N_M,
    "DclsTranspose1d": TRANSPOSED,
    "DclsTranspose2d": TRANSPOSED,
    "DclsTranspose3d": TRANSPOSED,
}
#: By keyword only, and not in 0.1.1.
START = {"init_positions": "normal", "init_widths": None}
NEW = {"method": "auto", **START, "device": None, "dtype": None}
KINDS = {**OF_0_1_1, **SINCE}
IM2COL = ["Dcls1d", "Dcls2d", "Dcls3d"]

PATHS = {
    "DCLS": KINDS,
    "DCLS.construct": KINDS,
    "DCLS.construct.modules": KINDS,
    "DCLS.construct.modules.Dcls": KINDS,
    "DCLS.construct.modules.base": ["_DclsNd", "_DclsN_Md"],
    "DCLS.construct.modules.construct_kernel": [n for n in KINDS if n.startswith("Construct")],
    "DCLS.construct.modules.conv": ["Dcls1d", "Dcls2d", "Dcls3d", "Dcls2dK1d"],
    "DCLS.construct.modules.conv_nm": ["Dcls2_1d", "Dcls3_1d", "Dcls3_2d"],
    "DCLS.construct.modules.transposed": [n for n in KINDS if n.startswith("DclsTranspose")],
}
#: What is the same object wherever it is found: the path, its names, and where they are now.
SAME = [
    ("DCLS.im2col", IM2COL, "DCLS.nn.im2col"),
    ("DCLS.im2col.modules", IM2COL, "DCLS.nn.im2col"),
    ("DCLS.modules", IM2COL, "DCLS.nn.im2col"),
    ("DCLS.modules.Dcls", IM2COL, "DCLS.nn.im2col"),
    ("DCLS.folding", ["fold"], "DCLS"),
    ("DCLS", ["construct_kernel"], "DCLS.functional"),
    # Private, but the README, the docs and the benchmarks name them.
    (
        "DCLS.construct.modules._axes",
        ["axis_order", "to_kernel_axes", "row_limits"],
        "DCLS.nn.axes",
    ),
    ("DCLS._method", ["expected_cells", "METHODS"], "DCLS.method"),
]
IM2COL_ROW = [
    "input", "P", "SIG", "dilated_kernel_size", "stride", "padding", "version", "sigma_min",
]  # fmt: skip
IM2COL_CONV = [
    "input", "weight", "bias", "P", "SIG", "dilated_kernel_size", "stride", "padding", "groups",
    "version", "sigma_min",
]  # fmt: skip
ROW = ["P", "SIG", "dilated_kernel_size", "version", "sigma_min"]
FUNCTIONS = {
    "DCLS.fold": ["model", "inplace"],
    "DCLS.functional.construct_kernel": ["weight", *ROW, "return_support"],
    "DCLS.functional.construct_support": ROW,
    "DCLS.functional.direct_conv": [
        "input", "kernel", "bias", "stride", "padding", "dilation", "groups", "support",
    ],
    "DCLS.functional.im2col": IM2COL_ROW,
    "DCLS.functional.im2col_conv": [*IM2COL_CONV, "workspace"],
    "DCLS.reference.taps": ["P", "SIG", "size", "version", "sigma_min"],
    "DCLS.reference.construct_kernel": ["weight", *ROW],
    "DCLS.reference.im2col": IM2COL_ROW,
    "DCLS.reference.im2col_conv": IM2COL_CONV,
    "DCLS.cmake.prefix": [],
    "DCLS.cmake.config_dir": [],
}  # fmt: skip
MEMBERS = ["forward", "_conv_forward", "reset_parameters", "clamp_parameters", "extra_repr"]
MEMBERS += ["to_conv", "version", "method"]  # since 0.1.1


@pytest.mark.parametrize("path", PATHS)
def test_layers_and_builders_are_at_their_old_paths(path: str) -> None:
    module = import_module(path)
    for name in PATHS[path]:
        assert getattr(module, name) is getattr(DCLS, name), name
    if PATHS[path] is KINDS:
        assert set(KINDS) <= set(module.__all__)


def test_a_star_import_leaves_the_users_nn_alone() -> None:
    names: dict[str, Any] = {}
    exec("import torch.nn as nn\nfrom DCLS import *", names)
    assert names["nn"] is torch.nn
    assert names["Dcls2d"] is DCLS.Dcls2d


@pytest.mark.parametrize(("path", "names", "now"), SAME, ids=[path for path, *_ in SAME])
def test_other_names_are_at_their_old_paths(path: str, names: list[str], now: str) -> None:
    for name in names:
        assert getattr(import_module(path), name) is getattr(import_module(now), name), name


def defaults(kind: Any, which: inspect._ParameterKind) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.kind == which}


@pytest.mark.parametrize("name", KINDS)
def test_arguments_have_their_old_order_and_defaults(name: str) -> None:
    kind = getattr(DCLS, name)
    got = defaults(kind, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert list(got.items()) == list(KINDS[name].items())
    more = defaults(kind, inspect.Parameter.KEYWORD_ONLY)
    if name == "_DclsNd":
        assert more.pop("kernel_size", REQUIRED) is None
    if "Transpose" in name:
        assert more == {**START, "device": None, "dtype": None}
    else:
        assert more == ({} if "Construct" in name else NEW)


@pytest.mark.parametrize("name", IM2COL)
def test_im2col_layers_take_what_the_others_take(name: str) -> None:
    kind = getattr(DCLS.im2col.modules, name)
    got = defaults(kind, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert list(got.items()) == list(CONV.items())
    assert defaults(kind, inspect.Parameter.KEYWORD_ONLY) == NEW


@pytest.mark.parametrize("path", FUNCTIONS)
def test_functions_have_their_old_arguments(path: str) -> None:
    module, _, name = path.rpartition(".")
    function = getattr(import_module(module), name)
    assert list(inspect.signature(function).parameters) == FUNCTIONS[path]


@pytest.mark.parametrize("name", [name for name in KINDS if "Construct" not in name])
def test_layers_have_their_old_members(name: str) -> None:
    for member in MEMBERS:
        assert hasattr(getattr(DCLS, name), member), member
    assert isinstance(inspect.getattr_static(DCLS.Dcls2d, "use_implicit_gemm"), property)


def test_pickles_name_classes_by_any_of_the_paths() -> None:
    for path, names in PATHS.items():
        for name in names:
            # Protocol 0 names a class as a line of text: the path, then the name.
            assert pickle.loads(f"c{path}\n{name}\n.".encode()) is getattr(DCLS, name)
    for path in ("DCLS.im2col.modules", "DCLS.modules.Dcls"):
        assert pickle.loads(f"c{path}\nDcls2d\n.".encode()) is DCLS.im2col.modules.Dcls2d


def test_a_whole_layer_of_an_old_path_is_read() -> None:
    layer = DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=5)
    saved = pickle.dumps(layer, protocol=0)
    for now, old in (
        ("nn.conv", "construct.modules.conv"),
        ("nn.builders", "construct.modules.construct_kernel"),
    ):
        assert f"DCLS.{now}".encode() in saved
        saved = saved.replace(f"DCLS.{now}".encode(), f"DCLS.{old}".encode())
    read = pickle.loads(saved)
    assert type(read) is DCLS.Dcls2d
    assert type(read.DCK) is DCLS.ConstructKernel2d
    assert read.P.equal(layer.P)
