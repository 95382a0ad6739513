"""The example package: its extension, its module, and that both mean the same."""

import pytest
import torch
from dcls_delays import Delays1d, _core


def test_output_is_causal():
    torch.manual_seed(0)
    layer = Delays1d(2, 3, max_delay=10, kernel_count=2)
    signal = torch.randn(1, 2, 30)
    before = layer(signal)
    assert before.shape == (1, 3, 30)
    signal[..., 20:] += 1
    after = layer(signal)
    assert torch.equal(before[..., :20], after[..., :20])
    assert not torch.equal(before[..., 20:], after[..., 20:])


def test_an_impulse_comes_out_after_the_delay():
    layer = Delays1d(1, 1, max_delay=8)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.zero_()
        layer.SIG.zero_()
        layer.P.fill_(4 - 3)  # position 5 of 0..8: three steps before the last, which is now
    assert layer.delays().item() == 3
    impulse = torch.zeros(1, 1, 20)
    impulse[0, 0, 5] = 1
    assert layer(impulse).argmax().item() == 5 + 3


def test_delays_are_learned():
    layer = Delays1d(1, 1, max_delay=8)
    with torch.no_grad():
        layer.weight.fill_(0.3)
        layer.bias.zero_()
        layer.SIG.fill_(1)  # wide enough to see the target
        layer.P.zero_()
    assert layer.delays().item() == 4
    target = torch.zeros(1, 1, 40)
    target[0, 0, 22] = 0.3
    impulse = torch.zeros(1, 1, 40)
    impulse[0, 0, 20] = 1
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (layer(impulse) - target).square().sum().backward()
        optimiser.step()
        layer.clamp_parameters()
    assert layer.delays().item() == pytest.approx(2, abs=0.2)


def test_density_agrees_with_the_module():
    torch.manual_seed(0)
    layer = Delays1d(2, 2, max_delay=12, kernel_count=3).double()
    with torch.no_grad():
        layer.weight.fill_(1)
    kernel = layer.DCK(layer.weight, layer.P, layer.SIG)
    assert layer.density(1, 0) == pytest.approx(kernel[1, 0].tolist(), rel=1e-12, abs=1e-15)


def test_errors_of_the_library_arrive():
    with pytest.raises(ValueError, match="sigma_min must be finite and positive"):
        _core.density([0.0], [0.0], 5, -1.0)
    with pytest.raises(ValueError, match="position and sigma must be of one length, got 2 and 1"):
        _core.density([0.0, 1.0], [0.0], 5, 0.27)
