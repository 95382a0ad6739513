"""Training and testing one network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from DCLS.demo.data import Digits
from DCLS.demo.distributed import Team
from DCLS.demo.settings import Settings

# The positions' learning rate relative to the weights', and no weight decay on them, as in the
# papers (arXiv 2112.03740, 2306.00817): positions are distances in pixels, not weights.
POSITION_LR_FACTOR = 5.0
WEIGHT_DECAY = 0.05
WARM_UP_EPOCHS = 2
TEST_BATCH_SIZE = 256


class DivergedError(ArithmeticError):
    """The loss became infinite or NaN."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: mean training loss, test accuracy in [0, 1], training seconds."""

    loss: float
    accuracy: float
    seconds: float


def parameter_groups(network: nn.Module, lr: float) -> list[dict[str, object]]:
    """Groups the parameters for the optimiser.

    Weight decay is for matrices and kernels only: not for positions and widths of DCLS elements,
    nor for biases, norms and layer scales.
    """
    positions, decayed, others = [], [], []
    for name, parameter in network.named_parameters():
        kind = name.rpartition(".")[2]
        if kind == "P":
            positions.append(parameter)
        elif kind == "SIG" or parameter.ndim < 2:
            others.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "lr": lr, "weight_decay": WEIGHT_DECAY},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
    if positions:
        groups.append({"params": positions, "lr": POSITION_LR_FACTOR * lr, "weight_decay": 0.0})
    return groups


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Learning rate of a step relative to the peak: linear warm-up, then half a cosine to 0."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def clamp_positions(network: nn.Module) -> None:
    """Brings the positions of every DCLS layer back into its kernel."""
    for module in network.modules():
        clamp = getattr(module, "clamp_parameters", None)
        if clamp is not None:
            clamp()


def evaluate(network: nn.Module, images: Tensor, labels: Tensor, team: Team) -> float:
    """Returns the accuracy of ``network`` on all of ``images``, each process doing its part."""
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=team.device)
    mine = team.shard(torch.arange(len(labels), device=labels.device))
    with torch.no_grad():
        for part in mine.split(TEST_BATCH_SIZE):
            right += (network(images[part]).argmax(1) == labels[part]).sum()
    return team.sum(right).item() / len(labels)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train(
    network: nn.Module,
    data: Digits,
    settings: Settings,
    team: Team,
    *,
    on_step: Callable[[], None] | None = None,
    on_epoch: Callable[[int, Epoch], None] | None = None,
) -> list[Epoch]:
    """Trains ``network`` in place with AdamW.

    The result is the same to rounding for any number of processes: they see the same order of the
    images, share each batch, and weight their part by what it is of the whole, so that the mean of
    their gradients is that of the batch even where it does not divide evenly.

    Args:
        network: the network, on ``team.device``.
        data: the images, on ``team.device``, of the network's dtype.
        settings: epochs, batch size, learning rate and seed.
        team: the processes that train together.
        on_step: called after each step.
        on_epoch: called after each epoch with its number, from 1.

    Returns:
        The epochs.

    Raises:
        DivergedError: the mean loss of an epoch is not finite.
    """
    model = team.wrap(network)
    optimiser = torch.optim.AdamW(parameter_groups(network, settings.lr))
    count = len(data.train_labels)
    steps_per_epoch = math.ceil(count / settings.batch_size)
    steps = settings.epochs * steps_per_epoch
    # At most a quarter of a short training, so that it, too, gets beyond the warm-up.
    warm_up = min(WARM_UP_EPOCHS * steps_per_epoch, steps // 4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: schedule(step, steps, warm_up)
    )
    shuffle = torch.Generator().manual_seed(settings.seed)
    epochs = []
    for number in range(1, settings.epochs + 1):
        model.train()
        start = _now(team.device)
        total = torch.zeros((), dtype=torch.float64, device=team.device)
        order = torch.randperm(count, generator=shuffle).to(team.device)
        for batch in order.split(settings.batch_size):
            mine = team.shard(batch)
            scores = model(data.train_images[mine])
            loss = F.cross_entropy(scores, data.train_labels[mine], reduction="sum")
            optimiser.zero_grad()
            (loss * (team.size / len(batch))).backward()
            optimiser.step()
            scheduler.step()
            clamp_positions(network)
            total += loss.detach()
            if on_step is not None:
                on_step()
        seconds = _now(team.device) - start
        mean_loss = team.sum(total).item() / count
        if not math.isfinite(mean_loss):
            raise DivergedError(f"the training diverged: the loss of epoch {number} is {mean_loss}")
        accuracy = evaluate(network, data.test_images, data.test_labels, team)
        epochs.append(Epoch(mean_loss, accuracy, seconds))
        if on_epoch is not None:
            on_epoch(number, epochs[-1])
    return epochs
