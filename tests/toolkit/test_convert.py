"""Surgery on whole models: what is replaced, what is kept, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layers import assert_close
from torch import Tensor, nn

import DCLS
from DCLS import im2col


class Block(nn.Module):
    """A block of a small ConvNeXt."""

    def __init__(self, channels: int, size: int = 5) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)
        self.pw = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.pw(self.dw(x)).relu()
        return y


class Net(nn.Module):
    """Two stages; one convolution stands in plain places, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=2, padding=1)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(Block(4), Block(4)),
                nn.Sequential(nn.Conv2d(4, 8, 2, stride=2), Block(8), Block(8), Block(8)),
            ]
        )
        self.plain = [self.stages[0][0].dw]
        self.call = lambda x, conv=self.stages[0][0].dw: conv(x)
        self.up = nn.ConvTranspose2d(8, 20, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.call(self.plain[0](self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        y: Tensor = self.up(x)
        return y


def make(dtype: torch.dtype = torch.float64) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net().to(dtype), torch.randn(2, 3, 16, 18, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [None, "stage"])
def test_trained_kernels_outputs_training_and_the_way_back(dtype: Any, share: Any) -> None:
    model, x = make(dtype)
    want = model(x)
    keys = set(model.state_dict())
    report = DCLS.convert_(model, dilated_kernel_size=9, start="kernel", share=share)
    relative = 1e-12 if dtype == torch.float64 else 1e-5
    assert_close(model(x), want, relative)
    assert [c.name for c in report] == [
        f"stages.{n}.dw" for n in ("0.0", "0.1", "1.1", "1.2", "1.3")
    ]
    assert {c.error for c in report} == {0.0}
    assert model.plain[0] is model.stages[0][0].dw
    assert type(model.plain[0]) is DCLS.Dcls2d
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = copy.deepcopy(model.state_dict())
    model(x).square().mean().backward()
    optimizer.step()
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed == list(before)
    want = model(x)
    assert DCLS.fold(model, inplace=True) is model
    assert set(model.state_dict()) == keys
    assert_close(model(x), want, relative)


def test_fresh_starts() -> None:
    model, x = make()
    shape = model(x).shape
    torch.manual_seed(1)
    report = DCLS.convert_(model, dilated_kernel_size=17, kernel_count=26)
    layer = model.stages[0][0].dw
    torch.manual_seed(1)
    same = DCLS.Dcls2d(
        4, 4, 26, dilated_kernel_size=17, groups=4, init_positions="spread", dtype=torch.float64
    )
    assert torch.equal(layer.P, same.P)
    assert torch.equal(layer.weight, same.weight)
    assert (layer.version, layer.kernel_count, layer.padding) == ("gauss", 26, (8, 8))
    assert model(x).shape == shape
    assert {c.error for c in report} == {None}
    assert report[0].cells > 250
    assert report[0].points == 289
    for start in ("normal", "grid", lambda p, _: p + 2):
        model, x = make()
        DCLS.convert_(model, dilated_kernel_size=7, version="v1", start=start)
        assert model(x).shape == shape
        assert model.stages[0][0].dw.init_positions == start


def test_the_table() -> None:
    model, _ = make()
    report = DCLS.convert_(
        model, dilated_kernel_size=9, kernel_count=10, start="kernel", share="stage", version="v1"
    )
    lines = str(report).splitlines()
    assert lines[0].split() == ["name", "before", "after", "parameters", "cells", "method", "error"]
    assert len(lines) == 2 + len(report) + 1
    assert lines[2].startswith("stages.0.0.dw  Conv2d 5x5  Dcls2d 10 in 9x9, v1  104 -> 124")
    assert lines[3].split()[8:11] == ["104", "->", "44"]  # its positions are those of the first
    assert lines[-1].startswith("5 layers")
    assert 0.05 < report[0].error < 0.9
    assert repr(report) == str(report)
    assert report[1:] == tuple(report)[1:]


def test_the_table_of_fresh_elements_has_no_errors() -> None:
    model, _ = make()
    lines = str(DCLS.convert_(model, dilated_kernel_size=9)).splitlines()
    assert lines[0].split() == ["name", "before", "after", "parameters", "cells", "method"]


def test_stages_share_positions_and_widths_but_no_weights() -> None:
    model, x = make()
    DCLS.convert_(model, dilated_kernel_size=9, share="stage")
    a, b = (model.stages[0][i].dw for i in (0, 1))
    c, d, e = (model.stages[1][i].dw for i in (1, 2, 3))
    assert a.P is b.P
    assert c.P is d.P is e.P
    assert c.SIG is d.SIG is e.SIG
    assert a.P is not c.P
    assert len({id(m.weight) for m in (a, b, c, d, e)}) == 5
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))
    model(x).sum().backward()
    want = model(x)
    assert_close(DCLS.fold(model, inplace=True)(x), want, 1e-12)


def test_a_function_shares_and_none_is_alone() -> None:
    model, _ = make()
    asked = []

    def ends(name: str, module: nn.Module) -> str | None:
        asked.append((name, type(module)))
        return "ends" if name in ("stages.1.1.dw", "stages.1.3.dw") else None

    DCLS.convert_(model, dilated_kernel_size=9, share=ends)
    assert len(asked) == 5
    assert {kind for _, kind in asked} == {nn.Conv2d}
    first, middle, last = (model.stages[1][i].dw for i in (1, 2, 3))
    assert first.P is last.P
    assert middle.P is not first.P
    assert model.stages[0][0].dw.P is not model.stages[0][1].dw.P


def test_layers_that_share_fit_their_kernels_together() -> None:
    """Two layers, whose kernels have their large weights at the same cells, lose nothing."""
    convs = [nn.Conv1d(2, 2, 7, groups=2, padding=3, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        for conv in convs:
            conv.weight[..., [0, 2, 3, 5]] = 0
    model = nn.Sequential(*convs)
    x = torch.randn(1, 2, 12, dtype=torch.float64)
    want = model(x)
    report = DCLS.convert_(
        model, dilated_kernel_size=9, kernel_count=3, start="kernel", share="stage"
    )
    assert convs[0].P is convs[1].P
    assert max(c.error for c in report) < 1e-9
    assert_close(model(x), want, 1e-9)


def test_dense_convolutions_follow_the_rule() -> None:
    convs = {
        "many": nn.Conv2d(4, 16, 3),
        "few": nn.Conv2d(4, 15, 3),
        "grouped": nn.Conv2d(16, 64, 3, groups=4),
        "depthwise": nn.Conv2d(16, 16, 3, groups=16),
        "line": nn.Conv1d(4, 32, 3),
        "volume": nn.Conv3d(2, 16, 3),
        "up": nn.ConvTranspose2d(4, 32, 3),
    }
    model = nn.ModuleDict(convs)
    inputs = {
        n: torch.randn(1, c.in_channels, *[9] * (c.weight.ndim - 2)) for n, c in convs.items()
    }
    want = {name: conv(inputs[name]) for name, conv in convs.items()}

    def all_of_them(module: nn.Module, name: str) -> bool:
        return name in convs

    report = DCLS.convert_(model, dilated_kernel_size=5, start="kernel", filter_fn=all_of_them)
    for name, module in model.items():
        assert_close(module(inputs[name]), want[name], 1e-5)
    wanted = ["im2col", "construct", "im2col", "construct", "im2col", "im2col", "construct"]
    assert [c.method for c in report] == wanted
    assert type(model["many"]) is im2col.modules.Dcls2d
    assert type(model["few"]) is DCLS.Dcls2d
    assert type(model["up"]) is DCLS.DclsTranspose2d


@pytest.mark.parametrize("method", ["im2col", "construct", "direct", "conv"])
def test_a_method_is_taken_for_all(method: str) -> None:
    model, x = make()
    want = model(x)
    DCLS.convert_(model, dilated_kernel_size=9, start="kernel", method=method)
    layer = model.stages[0][0].dw
    assert type(layer) is (im2col.modules.Dcls2d if method == "im2col" else DCLS.Dcls2d)
    assert layer.method == (method if method in ("direct", "conv") else "auto")
    assert_close(model(x), want, 1e-12)


def test_the_root_a_shared_convolution_and_flags() -> None:
    conv = nn.Conv1d(4, 4, 3, padding=1, groups=4).eval().requires_grad_(False)
    x = torch.randn(1, 4, 9)
    want = conv(x)
    report = DCLS.convert_(conv, dilated_kernel_size=5, start="kernel")
    assert report[0].name == ""
    assert "(the model)" in str(report)
    assert type(conv) is DCLS.Dcls1d
    assert not conv.training
    assert not any(p.requires_grad for p in conv.parameters())
    assert_close(conv(x), want, 1e-5)
    twice = nn.Conv1d(4, 4, 3, padding=1, groups=4)
    model = nn.Sequential(twice, nn.ReLU(), twice)
    assert len(DCLS.convert_(model, dilated_kernel_size=5)) == 1
    assert model[0] is model[2] is twice


def test_what_depthwise_is() -> None:
    assert DCLS.is_depthwise(nn.Conv2d(4, 4, 3, groups=4), "any.name")
    assert DCLS.is_depthwise(nn.Conv1d(4, 8, 3, groups=4))
    for other in (
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(1, 1, 3), nn.Linear(2, 2),
        nn.Conv2d(4, 4, 1, groups=4), nn.ConvTranspose2d(4, 4, 3, groups=4),
        DCLS.Dcls2d(4, 4, 3, groups=4, dilated_kernel_size=5),
    ):  # fmt: skip
        assert not DCLS.is_depthwise(other)


# Refusals


def hook(*_: Any) -> None:
    pass


def break_late(net: Net) -> nn.Conv2d:
    return net.stages[1][3].dw


def tie(net: Net) -> None:
    break_late(net).weight = net.stages[1][2].dw.weight


CASES: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (None, {"filter_fn": lambda *_: False}, ValueError,
     r"takes no module .* 1 ConvTranspose2d"),
    (None, {"filter_fn": lambda m, _: m}, TypeError, "model cannot be converted: Net is no conv"),
    (None, {"filter_fn": "dw"}, TypeError, "filter_fn must be a function, got str"),
    (None, {"dilated_kernel_size": 3}, ValueError, r"model\.stages\.0\.0\.dw cannot .*at least 5"),
    (None, {"dilated_kernel_size": 8}, ValueError, "must be odd on axis 0"),
    (None, {"dilated_kernel_size": (9, 9, 9)}, ValueError, "dilated_kernel_size"),
    (None, {"dilated_kernel_size": None}, TypeError, "dilated_kernel_size"),
    (None, {"kernel_count": -1}, ValueError, "kernel_count"),
    (None, {"version": "v2"}, ValueError, "version"),
    (None, {"start": "trained"}, ValueError, "start must be one of"),
    (None, {"share": "stages"}, ValueError, "share must be None, 'stage' or a function"),
    (None, {"share": 3}, TypeError, "share must be"),
    (None, {"share": lambda *_: "one"}, ValueError,
     r"different shapes: model\.stages\.0\.0\.dw .*model\.stages\.1\.1\.dw"),
    (None, {"method": "fft"}, ValueError, "method must be one of construct, im2col"),
    (None, {"method": None}, TypeError, "method must be"),
    (lambda n: break_late(n).register_forward_hook(hook), {}, RuntimeError,
     r"model\.stages\.1\.3\.dw cannot be converted: Conv2d has hooks.*forward_hooks: hook"),
    (lambda n: setattr(break_late(n), "forward", hook), {}, TypeError, "forward of its own"),
    (tie, {}, ValueError, r"model\.stages\.1\.2\.dw .*shares a parameter with \['stages\.1\.3"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "more", "kind", "message"), CASES)
def test_an_error_leaves_the_model_as_it_is(
    change: Any, more: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model, _ = make()
    if change is not None:
        change(model)
    before = [(n, type(m), list(m.__dict__)) for n, m in model.named_modules()]
    parameters = [(n, id(p), p.clone()) for n, p in model.named_parameters()]
    with pytest.raises(kind, match=message):
        DCLS.convert_(model, **{"dilated_kernel_size": 9, **more})
    assert [(n, type(m), list(m.__dict__)) for n, m in model.named_modules()] == before
    for (name, identity, value), (new, parameter) in zip(
        parameters, model.named_parameters(), strict=True
    ):
        assert (name, identity) == (new, id(parameter))
        assert torch.equal(parameter, value)


def test_where_there_is_nothing_to_convert_it_says_what_there_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    DCLS.convert_(model, dilated_kernel_size=5)
    with pytest.raises(ValueError, match=r"no depthwise .* 2 Conv2d and 1 DCLS .*; filter_fn take"):
        DCLS.convert_(model, dilated_kernel_size=5)
    with pytest.raises(ValueError, match=r"no depthwise .*: the model has no convolution$"):
        DCLS.convert_(nn.Linear(2, 2), dilated_kernel_size=5)


def test_a_weight_norm_is_refused_and_one_that_was_removed_is_not() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    with pytest.raises(RuntimeError, match=r"has parametrizations.*remove_parametrizations"):
        DCLS.convert_(conv, dilated_kernel_size=5)
    nn.utils.parametrize.remove_parametrizations(conv, "weight")
    x = torch.randn(1, 4, 8, 8)
    want = conv(x)
    DCLS.convert_(conv, dilated_kernel_size=5, start="kernel")
    assert_close(conv(x), want, 1e-5)
    fresh = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    DCLS.convert_(fresh, dilated_kernel_size=5, version="v0")
    fresh.load_state_dict(conv.state_dict())


def test_a_late_refusal_of_a_fit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("DCLS.convert.start_from_kernels", fails)
    model, x = make()
    want = model(x)
    with pytest.raises(RuntimeError, match=r"model\.stages\.0\.0\.dw cannot.*out of memory"):
        DCLS.convert_(model, dilated_kernel_size=9, start="kernel")
    assert torch.equal(model(x), want)


def test_a_model_in_ddp_is_refused(tmp_path: Any) -> None:
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model, _ = make()
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(RuntimeError, match=r"DistributedDataParallel.*convert it"):
            DCLS.convert_(wrapped, dilated_kernel_size=9)
        assert type(model.stages[0][0].dw) is nn.Conv2d
    finally:
        torch.distributed.destroy_process_group()


def test_no_module_and_other_kinds_of_convolutions() -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got list"):
        DCLS.convert_([nn.Conv2d(2, 2, 3, groups=2)], dilated_kernel_size=5)
    with pytest.raises(ValueError, match="the model has no convolution"):
        DCLS.convert_(nn.Linear(2, 2), dilated_kernel_size=5)

    class Slotted(nn.Conv2d):
        __slots__ = ("more",)

    model = nn.Sequential(Slotted(2, 2, 3, groups=2))
    with pytest.raises(TypeError, match=r"model\.0 cannot be converted"):
        DCLS.convert_(model, dilated_kernel_size=5)
    up = nn.Sequential(nn.ConvTranspose1d(2, 2, 3))
    with pytest.raises(ValueError, match="'auto' for a transposed"):
        DCLS.convert_(up, dilated_kernel_size=5, method="im2col", filter_fn=lambda _, n: n == "0")
