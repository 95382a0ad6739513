"""The demo's training, from the data to the table.

What is particular to DCLS are ``DCLS.param_groups``, ``DCLS.clamp_after_step`` and
``DCLS.WidthSchedule`` in ``train``. The rest is a training loop as for any other network. It also
runs on several processes, under ``torchrun``.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import DCLS
from DCLS.demo.outcome import Outcome, table, verdict
from DCLS.demo.settings import DTYPES, Settings, environment
from DCLS.demo.tasks import KINDS, Kind, Recipe, Split, Task
from DCLS.toolkit._layers import dcls_layers

WARM_UP_EPOCHS = 2
TEST_BATCH_SIZE = 256


class DivergedError(ArithmeticError):
    """The loss became infinite or NaN."""


# Several processes


def world() -> tuple[int, int]:
    """Rank of this process, and how many there are: ``(0, 1)`` unless in ``processes``."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def total(values: Tensor) -> float:
    """The sum of ``values`` over the processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values.item()


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, if it did: NCCL on GPUs, gloo on CPUs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if environment("WORLD_SIZE", 1) == 1:
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


# The training


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Learning rate of a step relative to the peak: linear warm-up, then half a cosine to 0."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


@torch.no_grad()
def evaluate(network: nn.Module, examples: Split) -> float:
    """Returns the accuracy of ``network`` on all of ``examples``; each process does its part."""
    rank, size = world()
    network.eval()
    count, device = len(examples.labels), examples.labels.device
    right = torch.zeros((), dtype=torch.int64, device=device)
    for mine in torch.arange(rank, count, size, device=device).split(TEST_BATCH_SIZE):
        inputs, labels = examples.part(mine)
        right += (network(inputs).argmax(1) == labels).sum()
    return total(right) / count


def now(device: torch.device) -> float:
    """Seconds, when everything queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def say(line: str) -> None:
    """Prints ``line`` at once, above any progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def train(
    network: nn.Module, examples: Split, recipe: Recipe, seed: int, *, silent: bool = True
) -> float:
    """Trains ``network`` in place with AdamW.

    The result is the same to rounding for any number of processes. They see the same order of the
    examples and share each batch. Each weights its loss by its share of the batch, so that the mean
    of the gradients is the gradient of the batch even if it does not divide evenly.

    Args:
        network: the network, on the device and in the dtype of the examples.
        examples: the training examples.
        recipe: epochs, batch size, rates and widths.
        seed: of the order of the examples, and of dropout.
        silent: False for a progress bar, if there is a terminal.

    Returns:
        The mean loss of the last epoch.

    Raises:
        DivergedError: the mean loss of an epoch is not finite.
    """
    device, count = examples.labels.device, len(examples.labels)
    rank, size = world()
    model = DistributedDataParallel(network) if size > 1 else network
    steps_per_epoch = math.ceil(count / recipe.batch_size)
    steps = recipe.epochs * steps_per_epoch

    # As the papers do (arXiv 2112.03740, 2306.00817): positions and widths learn faster than
    # weights and do not decay, and each step ends with all positions in the kernels.
    optimizer = torch.optim.AdamW(
        DCLS.param_groups(network, recipe.lr, recipe.weight_decay, recipe.position_lr_scale)
    )
    learned = any(layer.P.requires_grad for _, layer in dcls_layers(network))
    if learned:
        DCLS.clamp_after_step(optimizer, network)
    widths = None
    if learned and recipe.first_width is not None:
        widths = DCLS.WidthSchedule(network, recipe.first_width, steps=max(1, steps // 4))
    # At most a quarter of a short training, so that it, too, gets beyond the warm-up.
    warm_up = min(WARM_UP_EPOCHS * steps_per_epoch, steps // 4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, steps, warm_up)
    )
    shuffle = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed + rank)
    mean_loss = math.nan
    # The bar shows on a terminal only.
    bar = tqdm(total=steps, unit="step", leave=False, dynamic_ncols=True, disable=silent or None)
    with bar:
        for number in range(1, recipe.epochs + 1):
            model.train()
            summed_loss = torch.zeros((), dtype=torch.float64, device=device)
            order = torch.randperm(count, generator=shuffle).to(device)
            for batch in order.split(recipe.batch_size):
                inputs, labels = examples.part(batch[rank::size])
                loss = F.cross_entropy(model(inputs), labels, reduction="sum")
                optimizer.zero_grad()
                (loss * (size / len(batch))).backward()
                optimizer.step()
                scheduler.step()
                if widths is not None:
                    widths.step()
                summed_loss += loss.detach()
                bar.update()
            mean_loss = total(summed_loss) / count
            if not math.isfinite(mean_loss):
                raise DivergedError(
                    f"the training diverged: the loss of epoch {number} is {mean_loss}"
                )
    return mean_loss


# The comparison


def compare(
    task: Task, kinds: Sequence[Kind], settings: Settings, *, silent: bool = True
) -> list[Outcome]:
    """Trains a network of each kind for each seed, one after the other.

    Raises:
        DivergedError: a loss became infinite or NaN.
    """
    outcomes = []
    for seed in settings.seed_range:
        data = task.load(seed).to(settings.device, DTYPES[settings.dtype])
        for kind in kinds:
            network = task.network(kind, seed).to(DTYPES[settings.dtype])
            initial = copy.deepcopy(network)
            network.to(settings.device)
            start = now(settings.device)
            loss = train(network, data.train, settings.recipe, seed, silent=silent)
            seconds = now(settings.device) - start
            found = evaluate(network, data.validation), evaluate(network, data.test)
            outcome = Outcome(kind, seed, initial, network.cpu(), loss, *found, seconds)
            outcomes.append(outcome)
            if not silent:
                say(
                    f"seed {seed}   {task.label(kind)}: {outcome.parameters} parameters   "
                    f"loss {loss:.4f}   validation {found[0]:.2%}   {seconds:.1f} s"
                )
    return outcomes


def run(settings: Settings) -> None:
    """Trains the networks, prints the table and draws the picture.

    Under ``torchrun`` the processes train together, and the first one prints and draws.

    Raises:
        DivergedError: a loss became infinite or NaN.
        OSError: the picture cannot be written.
    """
    from DCLS.demo import picture

    torch.set_num_threads(settings.threads)
    task = settings.make_task()
    kinds = KINDS if settings.baseline else KINDS[:1]
    with processes(settings.device):
        rank, size = world()
        silent = settings.quiet or rank > 0
        if not silent:
            parts = [len(split.labels) for split in task.load(settings.seed)]
            say(
                "{}: {} for training, {} for validation, {} for test; ".format(task.title, *parts)
                + f"on {settings.device}, {size} process(es) of {settings.threads} CPU thread(s)"
            )
        outcomes = compare(task, kinds, settings, silent=silent)
        if rank == 0:
            say(f"\n{table(task, outcomes)}\n\n{verdict(task, outcomes)}\n")
            picture.save(task, outcomes, settings)
            say(f"picture: {settings.output}")
