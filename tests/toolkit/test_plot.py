"""DCLS.PositionTracker and DCLS.plot, without a display."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, layer_id
from toolkit.models import Net, layers_of
from torch import nn

import DCLS
from DCLS import Dcls1d, Dcls2d, plot
from DCLS.im2col import modules as im2col

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from matplotlib.figure import Figure  # noqa: E402


def drawn(figure: Figure) -> int:
    """Renders it, and returns the number of its panels."""
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return len(figure.axes)


@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_every_layer_is_drawn(layer: Layer) -> None:
    module = layer.make()
    tracker = DCLS.PositionTracker(module)
    for _ in range(2):
        tracker.update()
    assert drawn(plot.kernels(module, 3)) == 3
    assert drawn(plot.positions(module, start=module.positions() + 1)) == 1
    assert drawn(plot.density(module)) == 1
    assert drawn(plot.tracks(tracker)) == 1


def test_kernels_show_the_strongest_first_and_im2col_layers() -> None:
    layer = Dcls2d(3, 2, 1, dilated_kernel_size=(3, 5), version="v1")
    with torch.no_grad():
        layer.weight.fill_(0.1)
        layer.weight[1, 2] = -7
    (panel,) = plot.kernels(layer, 1).axes
    assert panel.get_title() == "1, 2"
    image = torch.tensor(panel.images[0].get_array())
    torch.testing.assert_close(image, layer.kernel()[1, 2].detach())
    assert drawn(plot.kernels(im2col.Dcls2d(2, 2, 3, dilated_kernel_size=5), 99)) == 4


@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_circles_are_where_the_kernels_are_not_zero(layer: Layer) -> None:
    module = layer.make(kernel_count=1)
    with torch.no_grad():
        module.P.mul_(3)
    DCLS.round_(module)
    for panel in plot.kernels(module, 5).axes:
        at = panel.collections[-1].get_offsets().data
        if panel.images:
            image = panel.images[0]
            values, (left, _, _, top) = image.get_array().data, image.get_extent()
            found = {(x - left - 0.5, y - top - 0.5) for x, y in at.tolist()}
            assert found == {(x, y) for y, x in zip(*values.nonzero(), strict=True)}
        else:
            heights = dict(zip(*panel.lines[0].get_data(), strict=True))
            assert {x for x, _ in at.tolist()} == {x for x, y in heights.items() if y}


def test_circles_of_im2col_layers_are_those_of_the_input_channel() -> None:
    layer = im2col.Dcls1d(4, 4, 2, groups=2, dilated_kernel_size=9)
    for panel in plot.kernels(layer, 8).axes:
        output, channel = map(int, panel.get_title().split(","))
        positions = layer.P[0, output // 2 * 2 + channel]
        assert panel.collections[-1].get_offsets()[:, 0].tolist() == positions.tolist()


def test_density_counts_elements() -> None:
    model = nn.Sequential(Dcls2d(1, 1, 3, dilated_kernel_size=(3, 5), version="v0"),
                          Dcls1d(1, 1, 2, dilated_kernel_size=4))  # fmt: skip
    model[0].set_positions(torch.tensor([[0.2, -0.4, 9], [-2, 1.8, 0]])[:, None, None])
    model[1].set_positions(torch.tensor(-2.0))
    first, second = plot.density(model).axes
    assert first.images[0].get_array().tolist() == [[0] * 5, [1, 0, 0, 0, 1], [0] * 5]
    assert second.images[0].get_array().tolist() == [[2, 0, 0, 0]]


def test_delays_are_counted_and_other_layers_refused() -> None:
    layer = Dcls1d(1, 1, 3, dilated_kernel_size=4)
    layer.set_delays(torch.tensor([0.0, 3.0, 3.0]))
    (panel,) = plot.delays(layer).axes
    assert [bar.get_height() for bar in panel.patches] == [1, 0, 0, 2]
    with pytest.raises(TypeError, match="delays need one learnable axis"):
        plot.delays(Dcls2d(1, 1, 1))


def test_given_axes_are_drawn_into() -> None:
    figure, layer = Figure(), Dcls2d(2, 2, 2, dilated_kernel_size=5)
    panels = figure.subplots(2, 2)
    assert plot.kernels(layer, axes=panels) is figure
    assert all(panel.images for panel in panels.ravel())
    assert plot.positions(layer, ax=panels[0, 0]) is figure
    assert plot.density(layer, axes=[panels[0, 1]]) is figure


def test_a_tracker_keeps_copies_and_goes_into_a_checkpoint() -> None:
    model = Net()
    tracker = DCLS.PositionTracker(model, kernels=3)
    first = model.stages[0][0].depthwise.positions().detach().clone()
    tracker.update(2)
    with torch.no_grad():
        for layer in layers_of(model):
            layer.P.add_(1)
    tracker.update()
    kept = tracker.positions()
    assert list(kept) == ["stages.0.0.depthwise", "stages.1.0.depthwise"]
    assert kept["stages.0.0.depthwise"].shape == (2, 2, 3, 4)
    assert torch.equal(kept["stages.0.0.depthwise"][0], first.flatten(1, -2)[:, [0, 1, 3]])
    assert tracker.steps == [2, 3]
    file = io.BytesIO()
    torch.save(tracker.state_dict(), file)
    file.seek(0)
    again = DCLS.PositionTracker(Net(), kernels=3)
    again.load_state_dict(torch.load(file, weights_only=True))
    again.update(9)
    assert again.steps == [2, 3, 9]
    assert again.positions()["stages.1.0.depthwise"].shape == (3, 2, 3, 4)
    assert drawn(plot.tracks(again, "stages.1.0.depthwise")) == 1


def test_bad_arguments() -> None:
    model, wrong = Net(), Any
    tracker = DCLS.PositionTracker(model)
    for wrong in (None, nn.Linear(1, 1), model):
        for draw in (plot.kernels, plot.positions, plot.delays):
            with pytest.raises(TypeError, match="layer must be a DCLS layer"):
                draw(wrong)
        with pytest.raises(TypeError, match=r"tracker must be a DCLS\.PositionTracker"):
            plot.tracks(wrong)
    layer = Dcls2d(1, 1, 2, dilated_kernel_size=5)
    with pytest.raises(ValueError, match="count must be a positive int"):
        plot.kernels(layer, 0)
    with pytest.raises(ValueError, match="axes must have at least one"):
        plot.kernels(layer, axes=[])
    for draw in (lambda: plot.kernels(layer, axes=[3]), lambda: plot.positions(layer, ax=3)):
        with pytest.raises(TypeError, match="axes must be matplotlib Axes"):
            draw()
    with pytest.raises(ValueError, match="start must have the shape"):
        plot.positions(layer, start=torch.zeros(2))
    with pytest.raises(TypeError, match="start must be a Tensor"):
        plot.positions(layer, start=[0])
    with pytest.raises(ValueError, match="tracker must have positions"):
        plot.tracks(tracker)
    for error, kernels in ((ValueError, 0), (TypeError, "3")):
        with pytest.raises(error, match="kernels must be a positive int"):
            DCLS.PositionTracker(model, kernels)
    with pytest.raises(ValueError, match="model must have a DCLS layer"):
        DCLS.PositionTracker(nn.Linear(1, 1))
    tracker.update(3)
    for error, step in ((ValueError, 3), (ValueError, -1), (TypeError, 4.5)):
        with pytest.raises(error, match="step must be"):
            tracker.update(step)
    with pytest.raises(ValueError, match="name must be one of stages"):
        plot.tracks(tracker, "head")
    good = tracker.state_dict()
    for error, bad in (
        (TypeError, None),
        (ValueError, {}),
        (ValueError, {**good, "steps": []}),
        (ValueError, {**good, "positions": {"head": torch.zeros(1, 1, 1, 1)}}),
        (ValueError, {**good, "positions": dict(list(good["positions"].items())[1:])}),
    ):
        with pytest.raises(error):
            tracker.load_state_dict(bad)
    few = DCLS.PositionTracker(model, kernels=2)
    with pytest.raises(ValueError, match=r"must have the shape \(2, 2, 4\) of each step"):
        few.load_state_dict(good)
    assert few.steps == []
    assert tracker.steps == [3]


def test_the_import_is_light_and_a_missing_matplotlib_is_named() -> None:
    code = (
        "import sys, DCLS\n"
        "assert not {'matplotlib', 'timm'} & set(sys.modules)\n"
        "sys.modules['matplotlib'] = None\n"
        "DCLS.plot.positions(DCLS.Dcls1d(1, 1, 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'needs matplotlib. Install it with: pip install "DCLS[plot]"' in done.stderr
