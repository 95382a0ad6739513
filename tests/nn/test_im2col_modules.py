"""The im2col modules."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from support import SIGMA_VERSIONS, VERSIONS
from torch import nn
from torch.nn.utils import parametrize

import DCLS
import DCLS.construct.modules as construct
from DCLS.im2col.modules import Dcls1d, Dcls2d, Dcls3d

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

CLASSES = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}
SIZES = {1: (6,), 2: (5, 4), 3: (3, 4, 5)}


def make(ndim, *, dtype=torch.float64, **more):
    torch.manual_seed(0)
    options = {"dilated_kernel_size": SIZES[ndim], "padding": 2, "groups": 2, **more}
    module = CLASSES[ndim](4, 6, 3, dtype=dtype, **options)
    with torch.no_grad():
        module.P.uniform_(-2, 1.5)
    return module


def draw(ndim, *lead, dtype=torch.float64):
    return torch.randn(*lead, 4, *[length + 2 for length in SIZES[ndim]], dtype=dtype)


def twin_of(module, ndim):
    """The construct module with the same kernel: positions shared, in its own axis order."""
    kind = getattr(construct, f"Dcls{ndim}d")
    twin = kind(
        4,
        6,
        3,
        stride=module.stride,
        padding=module.padding,
        dilated_kernel_size=module.dilated_kernel_size,
        groups=module.groups,
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
        version=module.version,
        dtype=module.weight.dtype,
    )
    order = {(1, True): (0,), (1, False): (0,), (2, True): (0, 1), (2, False): (1, 0)}
    order |= {(3, True): (0, 2, 1), (3, False): (2, 1, 0)}
    axes = order[ndim, module.version == "v0"]
    g = module.groups
    with torch.no_grad():
        twin.weight.copy_(module.weight)
        if module.bias is not None:
            twin.bias.copy_(module.bias)
        for name in ("P", "SIG"):
            if getattr(twin, name) is None:
                continue
            for row, axis in enumerate(axes):
                shared = getattr(module, name)[axis].unflatten(0, (g, 4 // g))
                getattr(twin, name)[row] = shared.repeat_interleave(6 // g, 0)
    return twin


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "bias": False},
        {"padding": "same"},
        {"padding": "valid", "groups": 1},
        {"padding_mode": "circular"},
        {"padding_mode": "reflect", "padding": "same"},
        {"padding_mode": "replicate", "stride": 2},
    ],
    ids=str,
)
def test_equals_the_construct_module(ndim, version, options):
    module = make(ndim, version=version, **options)
    twin, x = twin_of(module, ndim), draw(ndim, 2)
    torch.testing.assert_close(module(x), twin(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unbatched_and_channels_last(ndim):
    module, x = make(ndim), draw(ndim, 2)
    torch.testing.assert_close(module(x[0]), module(x)[0], rtol=1e-12, atol=1e-12)
    if ndim == 2:
        last = x.to(memory_format=torch.channels_last)
        assert torch.equal(module(last), module(x))
    assert module(x[:0]).shape == (0, *module(x).shape[1:])


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("version", VERSIONS)
def test_parameters(ndim, version):
    module = CLASSES[ndim](4, 6, 3, dilated_kernel_size=SIZES[ndim], groups=2, version=version)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    want = {"weight": (6, 2, 3), "P": (ndim, 4, 3), "bias": (6,)}
    if version in SIGMA_VERSIONS:
        want["SIG"] = (ndim, 4, 3)
        width = 0.23 if version == "gauss" else 0
        assert module.SIG.eq(width).all()
    assert shapes == want
    assert set(module.state_dict()) == set(want)
    with torch.no_grad():
        module.P.uniform_(-50, 50)
    module.clamp_parameters()
    for row, size in zip(module.P, SIZES[ndim], strict=True):  # P[d] on axis d, in every version
        assert row.min() == -(size // 2)
        assert row.max() == size - 1 - size // 2


def test_position_belongs_to_its_axis():
    for version in VERSIONS:
        module = Dcls2d(
            1, 1, 1, dilated_kernel_size=(7, 9), bias=False, version=version, dtype=torch.float64
        )
        with torch.no_grad():
            module.weight.fill_(1)
            module.P.copy_(torch.tensor([[[-2.0]], [[3.0]]]))
            if module.SIG is not None:
                module.SIG.zero_()
        x = torch.zeros(1, 1, 7, 9, dtype=torch.float64)
        x[0, 0, 3 - 2, 4 + 3] = 1
        # The tap at the position itself: a spline's is 2/3 on each axis, the others' 1 or nearly.
        assert module(x).item() > (0.4 if version == "spline" else 0.9)
        assert module(x.flip(2)).item() < 0.1


def test_older_path_and_top_level():
    import DCLS.modules
    import DCLS.modules.Dcls

    assert DCLS.modules.Dcls.Dcls2d is DCLS.modules.Dcls2d is DCLS.im2col.Dcls2d is Dcls2d
    assert DCLS.modules.Dcls.__all__ == ["Dcls1d", "Dcls2d", "Dcls3d"]
    assert DCLS.Dcls2d is construct.Dcls2d


def test_version_switch_and_strict_reload():
    module, x = make(2), draw(2, 2)
    state, before = copy.deepcopy(module.state_dict()), module(x)
    module.version = "max"
    with torch.no_grad():
        module.SIG.zero_()
        module.P.round_()
    assert not torch.allclose(module(x), before)
    module.version = "v1"  # SIG stays, unused
    torch.testing.assert_close(module(x), twin_of(module, 2)(x), rtol=1e-10, atol=1e-10)
    module.version = "gauss"
    module.load_state_dict(state, strict=True)
    assert torch.equal(module(x), before)


def test_copies():
    module, x = make(2), draw(2, 2)
    want = module(x)
    assert torch.equal(copy.deepcopy(module)(x), want)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), want)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("version", VERSIONS)
def test_fold(ndim, version):
    module, x = make(ndim, version=version), draw(ndim, 2)
    folded = DCLS.fold(nn.Sequential(module))
    assert type(folded[0]) is getattr(nn, f"Conv{ndim}d")
    torch.testing.assert_close(folded(x), module(x), rtol=1e-10, atol=1e-10)


def test_training_learns_positions():
    """A network that only moves its samples finds where the target took them."""
    torch.manual_seed(0)
    target = Dcls2d(2, 1, 1, dilated_kernel_size=9, padding=4, bias=False, version="v1")
    learner = Dcls2d(2, 1, 1, dilated_kernel_size=9, padding=4, bias=False, version="v1")
    with torch.no_grad():
        target.P.copy_(torch.tensor([[[1.3], [-0.6]], [[-1.4], [0.7]]]))
        learner.weight.copy_(target.weight)
        learner.P.fill_(0.1)  # at 0 itself there is a kink
    # Smooth images: the samples' gradients lead further than to the next pixel.
    x = F.avg_pool2d(F.avg_pool2d(torch.randn(4, 2, 32, 32), 7, 1, 3), 7, 1, 3)
    optimiser = torch.optim.Adam([learner.P], lr=0.03)
    for _ in range(250):
        loss = (learner(x) - target(x).detach()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        learner.clamp_parameters()
    torch.testing.assert_close(learner.P, target.P, rtol=0, atol=0.2)  # from as far as 1.5


def test_parametrized_integer_and_half_positions():
    class Halved(nn.Module):
        def forward(self, P):
            return P / 2

    module, x = make(2), draw(2, 2)
    want = copy.deepcopy(module)
    with torch.no_grad():
        want.P.mul_(0.5)
    parametrize.register_parametrization(module, "P", Halved())
    assert torch.equal(module(x), want(x))
    whole = make(2)
    for rows in (whole.P, whole.SIG):
        rows.requires_grad_(False)
        rows.data = torch.randint(-2, 2, rows.shape)
    as_floats = copy.deepcopy(whole)
    as_floats.P.data, as_floats.SIG.data = whole.P.double(), whole.SIG.double()
    assert torch.equal(whole(x), as_floats(x))
    low = make(2).to(torch.bfloat16)
    low.P.data = low.P.data.float()
    low.SIG.data = low.SIG.data.float()
    assert low(x.to(torch.bfloat16)).dtype == torch.bfloat16
    for name, dtype in (("P", torch.float32), ("weight", torch.bfloat16)):
        low(x.to(torch.bfloat16)).sum().backward()
        assert getattr(low, name).grad.dtype == dtype


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_compile(low):
    torch.compiler.reset()
    module, x = make(2, dtype=torch.float32), draw(2, 2, dtype=torch.float32)
    want = module(x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    for callee in (module, compiled):
        with torch.autocast("cpu", low):
            output = callee(x)
        assert output.dtype == low
        torch.testing.assert_close(output.float(), want, rtol=0.05, atol=0.05)
        output.float().square().sum().backward()
    assert module.P.grad.dtype == torch.float32


def test_workspace_and_repr():
    module, x = make(2), draw(2, 2)
    want = module(x)
    module.workspace = 300
    torch.testing.assert_close(module(x), want, rtol=1e-12, atol=1e-12)
    module.workspace = 1
    with pytest.raises(ValueError, match="workspace must be at least"):
        module(x)
    assert repr(make(2)) == (
        "Dcls2d(4, 6, kernel_count=3, stride=(1, 1), version=gauss, "
        "padding=(2, 2), dilated_kernel_size=(5, 4), groups=2)"
    )
