"""Draws the pictures of docs/delays.md, from the layers themselves.

    python docs/draw_delays.py

``delays.png``: spikes that arrive later, the kernel behind a delay, widths, and their schedule.
``delay-sharing.png``: which connections share a delay, and what a step holds. Needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import DCLS
from DCLS.delays import DelayLinear

IMAGES = Path(__file__).parent / "images"
COLORS = ("#c0392b", "#2471a3", "#1e8449")
LONGEST, STEPS, EPOCHS = 8, 16, 100
LONG = 24


def make(inputs: int, outputs: int, delays: Tensor, **more: object) -> DelayLinear:
    """Returns a layer of weights 1 with given delays."""
    layer = DelayLinear(inputs, outputs, LONGEST, version="v1", **more)  # type: ignore[arg-type]
    layer.weight.data.fill_(1)
    layer.set_delays(delays)
    return layer


def bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.title.set_size(10)


def draw_spikes(axes: Axes) -> None:
    """Spikes at different times that arrive at the same one."""
    sent, delays = (3, 5, 8), (7.0, 5.0, 2.0)
    layer = make(3, 1, torch.tensor(delays).reshape(1, 3, 1))
    x = torch.zeros(STEPS, 1, 3)
    for channel, step in enumerate(sent):
        x[step, 0, channel] = 1
    y = layer(x).detach()[:, 0, 0]
    for channel, (step, delay, color) in enumerate(zip(sent, delays, COLORS, strict=True)):
        row = 3 - channel
        axes.hlines(row, 0, STEPS - 1, color="0.85", linewidth=1)
        axes.vlines(step, row, row + 0.6, color=color, linewidth=3)
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.3}
        axes.annotate("", (step + delay, row + 0.1), (step, row + 0.1), arrowprops=arrow)
        axes.text(step + delay / 2, row + 0.22, f"{delay:.0f}", color=color, ha="center", size=8)
    axes.hlines(0, 0, STEPS - 1, color="0.85", linewidth=1)
    axes.vlines(range(STEPS), 0, y.numpy() * 0.25, color="0.15", linewidth=3)
    labels = ["output", "input 2", "input 1", "input 0"]
    axes.set_yticks(range(4), labels)
    axes.set(xlabel="step", title="each input arrives after its delay", ylim=(-0.15, 4))
    bare(axes)


def draw_kernel(axes: Axes) -> None:
    """The kernel of one connection, with both of its scales."""
    delay = 5.0
    layer = make(1, 1, torch.tensor(delay))
    kernel = layer.kernel().detach()[0, 0]
    positions = list(range(-(len(kernel) // 2), len(kernel) - len(kernel) // 2))
    axes.vlines(positions, 0, kernel.numpy(), color=COLORS[1], linewidth=4)
    axes.plot(positions, [0] * len(positions), "o", color="0.6", markersize=3)
    axes.set_xticks(positions)
    axes.set(xlabel="position P, 0 in the middle", ylim=(-0.05, 1.25))
    axes.set_title("delay = S - 1 - (P + S // 2),  S = max_delay + 1", pad=6)
    twin = axes.secondary_xaxis(-0.27)
    twin.set_xticks(positions, [str(LONGEST - p - len(kernel) // 2) for p in positions])
    twin.set_xlabel("delay in steps: the last point of the kernel is now, delay 0")
    twin.tick_params(labelsize=8)
    twin.xaxis.label.set_size(9)
    at = float(layer.P.detach().squeeze())
    axes.text(at, 1.07, f"P = {at:.0f}: delay {delay:.0f}", ha="center", size=8, color=COLORS[1])
    bare(axes)


def draw_widths(axes: Axes) -> None:
    """How far an element reaches at the widths of a schedule."""
    layer = DelayLinear(1, 1, LONG, init_delays=12.0)
    layer.weight.data.fill_(1)
    for sigma, color in zip((12.0, 3.0, 0.23), COLORS, strict=True):
        layer.SIG.data.fill_(sigma)
        kernel = layer.kernel().detach()[0, 0].flip(0)
        label = f"SIG = {sigma:g}: width {sigma + 0.27:.2f}"
        axes.plot(kernel.numpy(), ".-", color=color, label=label, markersize=4, linewidth=1)
    axes.set(xlabel="delay in steps", title="gauss: wide elements feel the whole kernel")
    axes.legend(fontsize=8, frameon=False)
    bare(axes)


def draw_schedule(axes: Axes) -> None:
    """SIG over a training."""
    layer = DelayLinear(1, 1, LONG)
    schedule, values = DCLS.WidthSchedule(layer, start=12.0, steps=EPOCHS // 4), []
    for _ in range(EPOCHS):
        values.append(schedule.value)
        schedule.step()
    axes.semilogy(values, color="0.15")
    axes.axvline(EPOCHS // 4, color="0.8", linewidth=1)
    axes.text(EPOCHS // 4 + 2, 4, "a quarter of the training", size=8, color="0.4")
    axes.set_yticks([12, 3, 1, 0.23], ["12", "3", "1", "0.23"])
    axes.minorticks_off()
    axes.set(xlabel="epoch", title="SIG: WidthSchedule(start=12, steps=epochs // 4)")
    bare(axes)


def draw_sharing(panels: list[Axes]) -> None:
    """The delays of all pairs of channels."""
    for axes, sharing in zip(panels, ("synaptic", "axonal", "dendritic"), strict=True):
        torch.manual_seed(3)
        layer = DelayLinear(6, 4, LONGEST, sharing=sharing)  # type: ignore[arg-type]
        DCLS.round_(layer)
        table = layer.delays().detach()
        if sharing != "synaptic":
            table = table.unsqueeze(0 if sharing == "axonal" else 1).expand(4, 6, 1)
        axes.imshow(table[..., 0].numpy(), cmap="viridis", vmin=0, vmax=LONGEST)
        for row in range(4):
            for column in range(6):
                value = int(table[row, column, 0])
                ink = "white" if value < 5 else "black"
                axes.text(column, row, value, ha="center", va="center", color=ink, size=9)
        axes.set(xlabel="input", ylabel="output", xticks=range(6), yticks=range(4))
        axes.set_title(f"{sharing}: {layer.P.numel()} delays", size=10)
        axes.tick_params(labelsize=8)


def draw_state(panels: list[Axes]) -> None:
    """What is on its way, from step to step."""
    layer = make(1, 4, torch.tensor([1.0, 3.0, 4.0, 7.0]).reshape(4, 1, 1))
    state = layer.initial_state(1)
    for step, axes in enumerate(panels):
        value = torch.ones(1, 1) if step == 0 else torch.zeros(1, 1)
        output, state = layer.step(value, state.detach())
        axes.imshow(state.detach()[..., 0].numpy(), cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
        axes.set_yticks(range(LONGEST), [str(steps) for steps in range(1, LONGEST + 1)])
        axes.set(xlabel="output", ylabel="arrives in ... steps", xticks=range(4))
        arrived = [o for o in range(4) if output[0, o] > 0.5]
        sent = "a spike was sent" if step == 0 else "nothing arrived"
        what = f"it came to output {arrived[0]}" if arrived else sent
        axes.set_title(f"after step {step}: {what}", size=10)
        axes.tick_params(labelsize=8)


def draw() -> dict[str, Figure]:
    """Draws the pictures, by name."""
    first = Figure(figsize=(9, 6.2), dpi=150, layout="constrained")
    (spikes, kernel), (widths, schedule) = first.subplots(2, 2)
    for axes, part in ((spikes, draw_spikes), (kernel, draw_kernel), (widths, draw_widths),
                       (schedule, draw_schedule)):  # fmt: skip
        part(axes)
    second = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    rows = second.subplots(2, 3)
    draw_sharing(list(rows[0]))
    draw_state(list(rows[1]))
    return {"delays.png": first, "delay-sharing.png": second}


if __name__ == "__main__":
    for name, figure in draw().items():
        figure.savefig(IMAGES / name)
