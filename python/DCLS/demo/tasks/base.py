"""What a task of the demo has: data, networks of three kinds, and how they are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from DCLS.delays import DelayLinear

__all__ = [
    "KINDS",
    "Connections",
    "Data",
    "DelayTask",
    "Kind",
    "Recipe",
    "Split",
    "Task",
    "count_parameters",
    "hold_out",
]

#: Learned positions; fixed regular ones in a layer of the same reach; a plain convolution. All have
#: as many parameters, to within a few in a hundred, and the first kind never has the most.
Kind = Literal["learned", "fixed", "plain"]
KINDS: tuple[Kind, ...] = ("learned", "fixed", "plain")


class Split(NamedTuple):
    """Examples: ``inputs`` ``(N, ...)``, floating-point, and their classes ``labels`` ``(N,)``."""

    inputs: Tensor
    labels: Tensor

    def part(self, chosen: Tensor) -> Split:
        """Returns the examples of these numbers, or of a bool mask ``(N,)``."""
        return Split(self.inputs[chosen], self.labels[chosen])

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """Returns them on a device; the inputs in a dtype."""
        return Split(self.inputs.to(device, dtype), self.labels.to(device))


class Data(NamedTuple):
    """Examples to train on, to choose settings by, and to test the chosen ones on, once."""

    train: Split
    validation: Split
    test: Split

    def to(self, device: torch.device, dtype: torch.dtype) -> Data:
        """Returns the same data on a device, the inputs in a dtype."""
        return Data(*(split.to(device, dtype) for split in self))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task trains its networks; all kinds in the same way.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples a step.
        lr: peak learning rate.
        position_lr_scale: learning rate of positions over ``lr``.
        weight_decay: of the weights.
        first_width: the widths start so large and shrink exponentially to 0.23 in the first quarter
            of the training, as in arXiv 2306.17670; None leaves them to the optimizer.
    """

    epochs: int
    batch_size: int
    lr: float
    position_lr_scale: float = 5.0
    weight_decay: float = 0.05
    first_width: float | None = None


class Task(ABC):
    """A data set, and a network for each kind."""

    #: What the examples are, for a title: "spoken vowels, nine speakers".
    title: ClassVar[str]
    #: What a network with learned positions learns, behind the word "learning": "where to look".
    learned: ClassVar[str]
    #: Modules that ``load`` needs, with the packages that bring them.
    packages: ClassVar[Mapping[str, str]] = {}
    recipe: ClassVar[Recipe]

    @abstractmethod
    def load(self, seed: int) -> Data:
        """Returns the data, float64, on the CPU.

        The seed draws the validation examples from those for training. The test examples are the
        same for all seeds.
        """

    @abstractmethod
    def network(self, kind: Kind, seed: int) -> nn.Module:
        """Returns a network, initialised from ``seed``, float32, on the CPU."""

    @abstractmethod
    def label(self, kind: Kind) -> str:
        """Returns a name for a kind in the table and the picture."""


class Connections(Protocol):
    """Makes a layer ``(B, T, inputs)`` to ``(B, T, outputs)``."""

    def __call__(self, inputs: int, outputs: int, bias: bool = True) -> DelayLinear:
        """Returns the layer."""


class DelayTask(Task):
    """A task whose networks are made of connections with delays.

    A learned delay counts as a parameter. So a connection with ``n`` learned delays is beside ones
    with ``2 * n`` weights at fixed delays.
    """

    #: The longest delay, in steps.
    max_delay: ClassVar[int]
    #: Hidden neurons of a network.
    neurons: ClassVar[int]
    #: The delays of every connection of the other kinds.
    fixed_delays: ClassVar[Mapping[Kind, Sequence[int]]]

    @abstractmethod
    def build(self, connections: Connections, neurons: int) -> nn.Module:
        """Returns a network of these connections, with so many hidden neurons."""

    def network(self, kind: Kind, seed: int) -> nn.Module:
        """Returns the network of a kind."""
        torch.manual_seed(seed)
        return self.build(partial(self.connections, kind), self.neurons)

    def connections(self, kind: Kind, inputs: int, outputs: int, bias: bool = True) -> DelayLinear:
        """Returns a layer for ``(B, T, inputs)``, with delays of a kind."""
        if kind == "learned":
            count = len(self.fixed_delays["fixed"]) // 2
            layer = DelayLinear(
                inputs, outputs, self.max_delay, layout="BTN", count=count, bias=bias
            )
            frozen = layer.SIG  # the schedule alone sets the widths
        else:
            delays = torch.tensor(self.fixed_delays[kind])
            layer = DelayLinear(
                inputs, outputs, self.max_delay, layout="BTN", count=len(delays), bias=bias,
                version="v0", init_delays=delays,
            )  # fmt: skip
            frozen = layer.P
        assert frozen is not None
        frozen.requires_grad_(False)
        return layer

    def label(self, kind: Kind) -> str:
        """Returns the delays that a network of this kind has."""
        if kind == "learned":
            return "learned delays"
        name = "plain convolutions, delays" if kind == "plain" else "fixed delays"
        return f"{name} {', '.join(map(str, self.fixed_delays[kind]))}"


def hold_out(training: Split, seed: int) -> tuple[Split, Split]:
    """Returns four fifths of the examples, and the others, drawn by ``seed``."""
    count = len(training.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return training.part(order[count // 5 :]), training.part(order[: count // 5])


def count_parameters(network: nn.Module) -> int:
    """Number of learnable numbers in ``network``."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
