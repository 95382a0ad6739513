"""The experiment: the network with DCLS layers, and the plain one, on the same digits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from DCLS.demo.data import Digits
from DCLS.demo.distributed import Team
from DCLS.demo.model import DigitsNet, count_parameters, dcls_network, plain_network
from DCLS.demo.settings import DTYPES, Settings
from DCLS.demo.train import Epoch, train


@dataclass(frozen=True)
class Contestant:
    """A network of the comparison.

    Args:
        name: what the table calls it.
        make: makes it, initialised, on the CPU.
    """

    name: str
    make: Callable[[Settings], DigitsNet]


@dataclass(frozen=True)
class Outcome:
    """A trained network, on the CPU, with its initial state and what its epochs came to."""

    name: str
    initial: DigitsNet
    network: DigitsNet
    epochs: list[Epoch]

    @property
    def parameters(self) -> int:
        """Number of learnable numbers."""
        return count_parameters(self.network)

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch, in [0, 1]."""
        return self.epochs[-1].accuracy

    @property
    def seconds(self) -> float:
        """Mean training time of an epoch in seconds."""
        return sum(epoch.seconds for epoch in self.epochs) / len(self.epochs)


def contestants(settings: Settings) -> list[Contestant]:
    """The networks that ``settings`` asks for, the one with DCLS layers first."""
    size, plain = settings.kernel_size, settings.plain_kernel_size
    elements = "1 element" if settings.elements == 1 else f"{settings.elements} elements"
    name = f"DCLS {size}x{size}, {elements}, {settings.version}"
    networks = [Contestant(name, dcls_network)]
    if settings.baseline:
        networks.append(Contestant(f"plain {plain}x{plain}", plain_network))
    return networks


def compete(
    contestant: Contestant,
    data: Digits,
    settings: Settings,
    team: Team,
    *,
    on_step: Callable[[], None] | None = None,
    on_epoch: Callable[[int, Epoch], None] | None = None,
) -> Outcome:
    """Makes and trains one network. Arguments as :func:`DCLS.demo.train.train`.

    Raises:
        DivergedError: its loss became infinite or NaN.
    """
    initial = contestant.make(settings).to(DTYPES[settings.dtype])
    network = copy.deepcopy(initial).to(team.device)
    epochs = train(network, data, settings, team, on_step=on_step, on_epoch=on_epoch)
    return Outcome(contestant.name, initial, network.cpu(), epochs)
