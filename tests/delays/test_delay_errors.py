"""What delay layers refuse, and what they say then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from DCLS.delays import Delay, DelayLinear, unroll

LAYERS = {
    "synaptic": lambda: DelayLinear(4, 3, 6),
    "axonal": lambda: DelayLinear(4, 3, 6, sharing="axonal"),
    "dendritic": lambda: DelayLinear(4, 3, 6, sharing="dendritic", count=2),
    "delay": lambda: Delay(4, 6),
}

NAN = float("nan")
BAD = [
    ({"in_features": 0}, ValueError, "in_features must be a positive int"),
    ({"in_features": 2.0}, TypeError, "in_features must be"),
    ({"out_features": -1}, ValueError, "out_features must be"),
    ({"out_features": None}, TypeError, "out_features must be"),
    ({"max_delay": -1}, ValueError, "max_delay must be a non-negative int"),
    ({"max_delay": 2.5}, TypeError, "max_delay must be"),
    ({"max_delay": True}, TypeError, "max_delay must be"),
    ({"sharing": "none"}, ValueError, "sharing must be one of synaptic, axonal, dendritic"),
    ({"sharing": 1}, TypeError, "sharing must be a str"),
    ({"count": 0}, ValueError, "count must be a positive int"),
    ({"count": 2, "max_delay": 0}, ValueError, "count must be 1 where max_delay is 0"),
    ({"version": "v9"}, ValueError, "version must be one of"),
    ({"layout": "NBT"}, ValueError, "layout must be one of TBN, BTN, BNT"),
    ({"layout": None}, TypeError, "layout must be a str"),
    ({"causal": "yes"}, TypeError, "causal must be a bool"),
    ({"bias": "yes"}, TypeError, "bias must be a bool"),
    ({"init_delays": "normal"}, ValueError, "init_delays must be 'uniform', a number, .*'normal'"),
    ({"init_delays": 7}, ValueError, "init_delays must be from 0 to max_delay=6, got 7"),
    ({"init_delays": -0.1}, ValueError, "init_delays must be from 0 to"),
    ({"init_delays": NAN}, ValueError, "init_delays must be from 0 to"),
    ({"init_delays": None}, TypeError, "init_delays must be 'uniform', a number"),
    ({"init_delays": True}, TypeError, "init_delays must be 'uniform', a number"),
    ({"init_delays": torch.ones(3, 4, 1, dtype=torch.bool)}, TypeError, "init_delays must be"),
    ({"init_delays": torch.full((3, 4, 1), 7.0)}, ValueError, "init_delays must be from 0"),
    ({"init_delays": torch.ones(5)}, ValueError, "init_delays must have the shape"),
    ({"init_delays": lambda d, _: d[0]}, ValueError, "init_delays must fill its first argument"),
    ({"init_delays": lambda *_: 3}, ValueError, "init_delays must fill .* got int"),
    ({"init_delays": lambda d, _: d / 0}, ValueError, "init_delays must give finite delays"),
    ({"init_width": -1.0}, ValueError, "init_width must be finite and at least 0"),
    ({"init_width": "1"}, TypeError, "init_width must be a number"),
    ({"init_width": 1.0, "version": "v1"}, ValueError, "init_width must be None: version 'v1'"),
    ({"mask": torch.ones(3, 4)}, TypeError, "mask must be a bool Tensor or None"),
    ({"mask": [True]}, TypeError, "mask must be a bool Tensor or None, got list"),
    ({"mask": torch.ones(4, 3, dtype=torch.bool)}, ValueError, r"mask must have the shape \(3, 4"),
    ({"method": "fast"}, ValueError, "method must be one of"),
    ({"method": "conv", "sharing": "axonal"}, ValueError, "method must be one of auto"),
    ({"device": "nowhere"}, RuntimeError, "device must be None or name one"),
    ({"dtype": torch.int32}, TypeError, "dtype must be None or one of"),
]


def cell(current: Tensor, hidden: Any) -> tuple[Tensor, Any]:
    return current, hidden


@pytest.mark.parametrize(("wrong", "error", "text"), BAD)
def test_bad_arguments(wrong: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DelayLinear(**{"in_features": 4, "out_features": 3, "max_delay": 6, **wrong})
    only_linear = {"in_features", "out_features", "sharing", "count", "bias", "mask"}
    if set(wrong) & only_linear:
        return
    of_delay = {("delay" if key == "init_delays" else key): v for key, v in wrong.items()}
    if isinstance(wrong.get("init_delays"), Tensor) and wrong["init_delays"].ndim == 3:
        of_delay["delay"] = wrong["init_delays"].flatten()[:4]
    with pytest.raises(error, match=text.replace("init_delays", "delay")):
        Delay(**{"channels": 4, "max_delay": 6, **of_delay})


def test_bad_arguments_of_a_delay() -> None:
    with pytest.raises(ValueError, match="channels must be a positive int"):
        Delay(0, 3)
    with pytest.raises(TypeError, match="learn_delay must be a bool"):
        Delay(2, 3, learn_delay="no")
    with pytest.raises(TypeError, match="delays must be a Tensor"):
        Delay(2, 3).set_delays(3)
    with pytest.raises(ValueError, match="delays must have the shape"):
        Delay(2, 3).set_delays(torch.ones(3))


@pytest.mark.parametrize("kind", LAYERS)
def test_bad_inputs(kind: str) -> None:
    layer = LAYERS[kind]()
    for wrong, error, text in [
        (torch.ones(9, 2, 5), ValueError, "input must have 4 channels on axis 2 of TBN"),
        (torch.ones(9, 5), ValueError, "input must have 4 channels on axis 1 of TN"),
        (torch.ones(4), ValueError, "input must have the axes TBN, or TN without a batch"),
        (torch.ones(9, 2, 4, 1), ValueError, "input must have the axes TBN"),
        ([1.0], TypeError, "input must be a Tensor, got list"),
        (torch.ones(9, 2, 4) > 0, TypeError, "floating-point dtype, got torch.bool: of spikes"),
    ]:
        for call in (layer, layer.explain):
            with pytest.raises(error, match=text):
                call(wrong)
    state = layer.initial_state(2)
    now = torch.ones(2, 4)
    for args, error, text in [
        ((torch.ones(2, 5), state), ValueError, r"input must have the shape \(batch, 4\)"),
        ((torch.ones(2, 4, 1), state), ValueError, r"input must have the shape \(batch, 4\)"),
        (("x", state), TypeError, "input must be a Tensor"),
        ((now.long(), state), TypeError, "floating-point dtype, got torch.int64"),
        ((now, None), TypeError, "state must be a Tensor"),
        ((now, state[1:]), ValueError, "state must be what initial_state or a step returned"),
        ((now[:1], state), ValueError, "state must be what initial_state"),
        ((now, state.long()), ValueError, "state must be what initial_state"),
        ((now, state, 3), TypeError, r"taps must be what taps\(\) returned, got int"),
    ]:
        with pytest.raises(error, match=text):
            layer.step(*args)
    with pytest.raises(ValueError, match="batch must be a non-negative int"):
        layer.initial_state(-1)
    with pytest.raises(TypeError, match="batch must be"):
        layer.initial_state(None)
    if kind == "delay":
        return
    with pytest.raises(TypeError, match="cell must be a function"):
        unroll(3, layer, torch.ones(9, 2, 3))
    # A tensor of two rows would unpack.
    for returned in (torch.ones(2, 3), (torch.ones(2, 3), None, None)):
        with pytest.raises(TypeError, match="cell must return a pair"):
            unroll(lambda *_, r=returned: r, DelayLinear(3, 3, 4), torch.ones(9, 2, 3))
    with pytest.raises(TypeError, match="layer must be a DelayLinear or a Delay"):
        unroll(cell, nn.Linear(3, 3), torch.ones(9, 2, 3))
    with pytest.raises(TypeError, match="input must be a Tensor"):
        unroll(cell, layer, None)
    with pytest.raises(ValueError, match="input must have the axes TBN with 3 channels"):
        unroll(cell, layer, torch.ones(9, 2, 4))


def test_the_outputs_of_axonal_delays_need_the_method_of_the_layer() -> None:
    layer = DelayLinear(2, 3, 4, sharing="axonal")
    with pytest.raises(ValueError, match="method must be one of auto"):
        layer.method = "direct"
    assert layer.method == "auto"
