"""The demo's training, from the digits to the table.

What is particular to DCLS are ``DCLS.param_groups`` and ``DCLS.clamp_after_step`` in ``train``. The
rest is a training loop as for any other network. It also runs on several processes, under
``torchrun``.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import DCLS
from DCLS.demo import picture
from DCLS.demo.model import DigitsNet, Epoch, Outcome, count_parameters, dcls_network, plain_network
from DCLS.demo.settings import DTYPES, Settings, environment

WEIGHT_DECAY = 0.05
WARM_UP_EPOCHS = 2
TEST_BATCH_SIZE = 256


class DivergedError(ArithmeticError):
    """The loss became infinite or NaN."""


class Digits(NamedTuple):
    """Images ``(N, 1, 24, 24)`` and their labels ``(N,)`` (int64), for training and for test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(device: torch.device, dtype: torch.dtype) -> Digits:
    """Loads scikit-learn's 1797 digits: 1347 for training and 450 for test.

    The images of 8x8 pixels are scaled up to 24x24, bilinearly, then shifted and scaled to the mean
    0 and variance 1 of the training pixels. Every seed of a run gets the same split.
    """
    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    images = torch.from_numpy(bunch.images).to(torch.float64).unsqueeze(1)
    images = F.interpolate(images, (24, 24), mode="bilinear", align_corners=False)
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=0.25, stratify=bunch.target, random_state=0
    )
    variance, mean = torch.var_mean(images[train])
    images = ((images - mean) / variance.sqrt()).to(device, dtype)
    labels = labels.to(device)
    return Digits(images[train], labels[train], images[test], labels[test])


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
def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the accuracy of ``network`` on all of ``images``; each process does its part."""
    rank, size = world()
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=labels.device)
    mine = torch.arange(rank, len(labels), size, device=labels.device)
    for part in mine.split(TEST_BATCH_SIZE):
        right += (network(images[part]).argmax(1) == labels[part]).sum()
    return total(right) / len(labels)


def now(device: torch.device) -> float:
    """Seconds, when everything queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def say(line: str) -> None:
    """Prints ``line`` at once, above any progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def train(network: DigitsNet, digits: Digits, settings: Settings) -> list[Epoch]:
    """Trains ``network`` in place with AdamW, and tests it after each epoch.

    The result is the same to rounding for any number of processes. They see the same order of the
    images and share each batch. Each weights its loss by its share of the batch, so that the mean
    of the gradients is the gradient of the batch even if it does not divide evenly.

    Args:
        network: the network, on the device and in the dtype of the images.
        digits: the images.
        settings: epochs, batch size, learning rate and seed.

    Raises:
        DivergedError: the mean loss of an epoch is not finite.
    """
    images, labels, test_images, test_labels = digits
    device, count = images.device, len(labels)
    rank, size = world()
    silent = settings.quiet or rank > 0
    model = DistributedDataParallel(network) if size > 1 else network

    # As the papers do (arXiv 2112.03740, 2306.00817): positions and widths learn five times as fast
    # as weights and do not decay, and each step ends with all positions in the kernels.
    optimizer = torch.optim.AdamW(DCLS.param_groups(network, settings.lr, WEIGHT_DECAY))
    if any(isinstance(module, DCLS.Dcls2d) for module in network.modules()):
        DCLS.clamp_after_step(optimizer, network)
    steps_per_epoch = math.ceil(count / settings.batch_size)
    steps = settings.epochs * steps_per_epoch
    # At most a quarter of a short training, so that it, too, gets beyond the warm-up.
    warm_up = min(WARM_UP_EPOCHS * steps_per_epoch, steps // 4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, steps, warm_up)
    )
    shuffle = torch.Generator().manual_seed(settings.seed)
    epochs = []
    # The bar shows on a terminal only.
    bar = tqdm(total=steps, unit="step", leave=False, dynamic_ncols=True, disable=silent or None)
    with bar:
        for number in range(1, settings.epochs + 1):
            start = now(device)
            model.train()
            summed_loss = torch.zeros((), dtype=torch.float64, device=device)
            order = torch.randperm(count, generator=shuffle).to(device)
            for batch in order.split(settings.batch_size):
                mine = batch[rank::size]
                loss = F.cross_entropy(model(images[mine]), labels[mine], reduction="sum")
                optimizer.zero_grad()
                (loss * (size / len(batch))).backward()
                optimizer.step()
                scheduler.step()
                summed_loss += loss.detach()
                bar.update()
            seconds = now(device) - start
            mean_loss = total(summed_loss) / count
            if not math.isfinite(mean_loss):
                raise DivergedError(
                    f"the training diverged: the loss of epoch {number} is {mean_loss}"
                )
            accuracy = evaluate(network, test_images, test_labels)
            epochs.append(Epoch(mean_loss, accuracy, seconds))
            if not silent:
                say(
                    f"  epoch {number:{len(str(settings.epochs))}}/{settings.epochs}   "
                    f"loss {mean_loss:.4f}   test accuracy {accuracy:6.2%}   {seconds:.2f} s"
                )
    return epochs


# The comparison


def networks(settings: Settings) -> dict[str, DigitsNet]:
    """The networks that ``settings`` asks for, initialised; the one with DCLS layers first."""
    size, plain = settings.kernel_size, settings.plain_kernel_size
    elements = "1 element" if settings.elements == 1 else f"{settings.elements} elements"
    both = {f"DCLS {size}x{size}, {elements}, {settings.version}": dcls_network(settings)}
    if settings.baseline:
        both[f"plain {plain}x{plain}"] = plain_network(settings)
    return both


def compare(digits: Digits, settings: Settings) -> list[Outcome]:
    """Trains the networks that ``settings`` asks for, one after the other.

    Raises:
        DivergedError: a loss became infinite or NaN.
    """
    outcomes = []
    for name, network in networks(settings).items():
        if not settings.quiet and world()[0] == 0:
            say(f"{name}: {count_parameters(network)} parameters")
        initial = copy.deepcopy(network.to(DTYPES[settings.dtype]))
        epochs = train(network.to(digits.train_images.device), digits, settings)
        outcomes.append(Outcome(name, initial, network.cpu(), epochs))
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """The comparison: network, parameters, test accuracy, seconds an epoch."""
    rows = [["network", "parameters", "test accuracy", "seconds an epoch"]]
    rows += [
        [one.name, str(one.parameters), f"{one.accuracy:.2%}", f"{one.seconds:.2f}"]
        for one in outcomes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join(map("   ".join, lines))


def run(settings: Settings) -> None:
    """Trains the networks, prints the table and draws the picture.

    Under ``torchrun`` the processes train together, and the first one prints and draws.

    Raises:
        DivergedError: a loss became infinite or NaN.
        OSError: the picture cannot be written.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with processes(settings.device):
        rank, size = world()
        digits = load(settings.device, DTYPES[settings.dtype])
        if not settings.quiet and rank == 0:
            say(
                f"{len(digits.train_labels)} digits for training, {len(digits.test_labels)} for "
                f"test; on {settings.device}, {size} process(es) of {torch.get_num_threads()} CPU "
                "thread(s)"
            )
        outcomes = compare(digits, settings)
        if rank == 0:
            say(f"\n{table(outcomes)}\n")
            picture.save(outcomes, settings)
            say(f"picture: {settings.output}")
