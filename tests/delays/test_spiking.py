"""Delay layers beside the neurons of snnTorch and SpikingJelly, and in snnTorch's exporter."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from packages import import_or_skip
from torch import Tensor, nn

import DCLS
from DCLS.delays import Delay, DelayConv2d, DelayLinear, nir_node, unroll


def package(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own
        return import_or_skip(name)


def spikes(steps: int = 12, channels: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(steps, 3, channels, generator=generator) < 0.4).float()


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert a.abs().max() > 0


def test_snntorch_neurons_by_sequence_and_by_step() -> None:
    snn = package("snntorch")
    torch.manual_seed(0)
    layer = DelayLinear(5, 4, 6, init_width=1.0)
    layer.weight.data.abs_().mul_(3)
    delay = Delay(4, 3)
    neuron = snn.Leaky(beta=0.8, spike_grad=snn.surrogate.atan())
    x = spikes()

    def whole() -> Tensor:
        membrane, outputs = neuron.init_leaky(), []
        for current in delay(layer(x)):
            spike, membrane = neuron(current, membrane)
            outputs.append(spike)
        return torch.stack(outputs)

    def by_step(cut: int | None = None) -> Tensor:
        membrane, outputs = neuron.init_leaky(), []
        state, second = layer.initial_state(3), delay.initial_state(3)
        for t, now in enumerate(x):
            if t == cut:
                membrane, state, second = membrane.detach(), state.detach(), second.detach()
            current, state = layer.step(now, state)
            current, second = delay.step(current, second)
            spike, membrane = neuron(current, membrane)
            outputs.append(spike)
        return torch.stack(outputs)

    model = nn.ModuleList([layer, delay])
    got, want = by_step(), whole()
    assert 0 < want.mean() < 1
    assert torch.equal(got, want)
    same(gradients(got.sum(), model), gradients(want.sum(), model))
    assert torch.equal(by_step(6), want)
    # The last steps alone have less of a gradient where the graph is cut.
    assert not torch.allclose(
        gradients(by_step(6)[6:].sum(), model)[0], gradients(by_step()[6:].sum(), model)[0]
    )
    with DCLS.integer_positions(model):
        assert torch.equal(by_step(), whole())


def test_snntorch_cells_with_recurrent_delays() -> None:
    snn = package("snntorch")
    torch.manual_seed(0)
    layer = DelayLinear(4, 4, 5, init_width=1.0)
    neuron = snn.Leaky(beta=0.8, spike_grad=snn.surrogate.atan())
    outputs, (membrane, _, state) = unroll(
        lambda current, hidden: neuron(current, neuron.init_leaky() if hidden is None else hidden),
        layer,
        spikes(channels=4),
    )
    assert outputs.shape == (12, 3, 4)
    assert membrane.shape == (3, 4)
    assert state.shape == (5, 4, 3)
    assert all(g.abs().max() > 0 for g in gradients(outputs.sum(), layer))


def jelly() -> tuple[Any, Any, Any]:
    package("spikingjelly")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spikingjelly.activation_based import functional, neuron, surrogate
    return functional, neuron, surrogate


def test_spikingjelly_networks_in_both_step_modes() -> None:
    functional, neuron, surrogate = jelly()
    torch.manual_seed(0)
    first, second = DelayLinear(5, 4, 6, init_width=1.0), DelayLinear(4, 3, 6, sharing="axonal")
    for layer in (first, second):
        layer.weight.data.abs_().mul_(4)
    lif = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")
    net = nn.Sequential(first, lif, second)
    x = spikes()
    want = net(x)
    assert want.abs().sum() > 0
    wanted = gradients(want.square().sum(), net)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    states, outputs = [layer.initial_state(3) for layer in (first, second)], []
    for now in x:
        current, states[0] = first.step(now, states[0])
        output, states[1] = second.step(lif(current), states[1])
        outputs.append(output)
    got = torch.stack(outputs)
    assert torch.allclose(got, want, atol=1e-5)
    same(gradients(got.square().sum(), net), wanted)
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    assert torch.allclose(net(x), want, atol=1e-6)
    functional.reset_net(net)
    folded = DCLS.fold(net)
    assert torch.allclose(folded(x), want, atol=1e-5)


def test_spikingjelly_images() -> None:
    functional, neuron, surrogate = jelly()
    torch.manual_seed(0)
    net = nn.Sequential(
        DelayConv2d(2, 3, 3, max_delay=3, padding=1),
        neuron.IFNode(surrogate_function=surrogate.ATan(), step_mode="m"),
        DelayConv2d(3, 2, 3, max_delay=3, padding=1),
    )
    x = (torch.rand(6, 2, 2, 5, 5) < 0.5).float()
    y = net(x)
    assert y.shape == x.shape
    assert all(g.isfinite().all() for g in gradients(y.square().sum(), net))
    functional.reset_net(net)
    assert torch.allclose(DCLS.fold(net)(x), y, atol=1e-5)


def test_snntorch_exports_them_by_a_mapper() -> None:
    package("nir")
    nirtorch, snn = package("nirtorch"), package("snntorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from snntorch.export_nir import _extract_snntorch_module

        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 4, bias=False),
            Delay(4, 6),
            snn.Leaky(beta=torch.full((4,), 0.8), threshold=torch.ones(4), init_hidden=True),
        )
        graph = nirtorch.extract_nir_graph(
            model, lambda m: nir_node(m) or _extract_snntorch_module(m), torch.randn(1, 5)
        )
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert sorted(kinds) == ["Delay", "Input", "LIF", "Linear", "Output"]
