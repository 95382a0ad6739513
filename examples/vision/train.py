"""Trains a model of timm, its depthwise convolutions replaced, on a folder of images.

    pip install timm torchvision
    python examples/vision/train.py --data DIR

``DIR`` has ``train`` and ``val``, with a folder of images for each class, as ImageNet is laid out.

The recipe is that of "Dilated Convolution with Learnable Spacings" (arXiv 2112.03740) for ConvNeXt:
kernels of 17x17 with 34 elements; positions that start as ``N(0, 0.5)``, one set a stage, learn
five times as fast as the weights, do not decay and are clamped at each step; and the repulsive loss
from epoch 20 on. ``--size 23 --elements 26 --version gauss`` is that of arXiv 2306.00817, whose
widths start at 0.23 and are learned. The rest is the training of ConvNeXt-T (arXiv 2201.03545):
AdamW, 4e-3 for 4096 images a step (here in proportion to ``--batch-size``), decay 0.05, 20 epochs
of warm-up and half a cosine over 300, RandAugment, mixup, cutmix, label smoothing, random erasing,
stochastic depth 0.1, and an average of the weights.

Not run: ImageNet was not at hand, so there is no accuracy to quote, and this is one process on one
device. The test of this file trains a tiny model on images that it generates.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import DCLS

try:
    import timm
    from timm.data import Mixup, create_transform
    from timm.loss import SoftTargetCrossEntropy
    from timm.utils import ModelEmaV3
    from torchvision.datasets import ImageFolder
except ImportError as error:
    raise SystemExit(
        f"this example needs timm and torchvision: pip install timm torchvision ({error})"
    ) from None

WEIGHT_DECAY = 0.05
REPULSION_EPOCH = 20


def make_loaders(args: argparse.Namespace) -> tuple[DataLoader[Any], DataLoader[Any], int]:
    """Returns the loaders of ``train`` and ``val``, and the number of classes."""
    size = args.image_size
    for_training = create_transform(
        size,
        is_training=True,
        # The 9 is the most, too: 10 would leave 0 bits of a pixel, which Pillow refuses.
        auto_augment="rand-m9-mstd0.5-mmax9-inc1",
        re_prob=0.25,
        interpolation="bicubic",
    )
    for_test = create_transform(size, interpolation="bicubic", crop_pct=0.875)
    for part in ("train", "val"):
        if not (args.data / part).is_dir():
            raise SystemExit(f"there is no folder {args.data / part}")
    train = ImageFolder(str(args.data / "train"), for_training)
    val = ImageFolder(str(args.data / "val"), for_test)
    if train.classes != val.classes:
        raise SystemExit("train and val must have the same classes")
    if len(train) < args.batch_size:
        raise SystemExit(f"--batch-size must be at most {len(train)}, the images there are")
    rest = {"num_workers": args.workers, "pin_memory": args.device != "cpu"}
    return (
        DataLoader(train, args.batch_size, shuffle=True, drop_last=True, **rest),
        DataLoader(val, args.batch_size, **rest),
        len(train.classes),
    )


def make_model(args: argparse.Namespace, classes: int) -> nn.Module:
    """Makes the model, and replaces its depthwise convolutions by layers with positions."""
    extra = {"drop_path_rate": args.drop_path} if args.drop_path else {}
    model = timm.create_model(args.model, pretrained=False, num_classes=classes, **extra)
    report = DCLS.convert_(
        model,
        dilated_kernel_size=args.size,
        kernel_count=args.elements,
        version=args.version,
        share="stage",  # of the positions and the widths; each layer has its own weights
        start="normal",
    )
    print(report)
    return model.to(args.device)


def rate(step: int, warm_up: int, steps: int) -> float:
    """The learning rate of a step over its peak: a line up, then half a cosine down."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def train(
    model: nn.Module, loaders: tuple[DataLoader[Any], DataLoader[Any]], classes: int,
    args: argparse.Namespace,
) -> nn.Module:  # fmt: skip
    """Trains a model in place, and returns the average of its weights."""
    images, val = loaders
    lr = args.lr if args.lr is not None else 4e-3 * args.batch_size / 4096
    optimizer = torch.optim.AdamW(DCLS.param_groups(model, lr, WEIGHT_DECAY))
    DCLS.clamp_after_step(optimizer, model)
    steps, warm_up = args.epochs * len(images), min(args.warm_up, args.epochs // 4) * len(images)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(i, warm_up, steps))
    average = ModelEmaV3(model, decay=0.9999, use_warmup=True)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=classes)
    loss_of = SoftTargetCrossEntropy()
    device = torch.device(args.device)
    for epoch in range(args.epochs):
        model.train()
        for batch in images:
            x, y = mixup(*(tensor.to(device) for tensor in batch))
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                output = model(x)
            loss = loss_of(output.float(), y)
            if epoch >= REPULSION_EPOCH:
                loss = loss + DCLS.losses.repulsion(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update(model)
        found = accuracy(average.module, val, args)
        print(f"epoch {epoch + 1}  loss {loss.item():.4f}  top-1 of the average {found:.2%}")
        if args.save:
            torch.save({"model": model.state_dict(), "average": average.module.state_dict()},
                       args.save)  # fmt: skip
    trained: nn.Module = average.module
    return trained


@torch.no_grad()
def accuracy(model: nn.Module, images: DataLoader[Any], args: argparse.Namespace) -> float:
    """Returns the top-1 accuracy."""
    model.eval()
    right, count = 0, 0
    for x, y in images:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
            output: Tensor = model(x.to(args.device))
        right += int((output.argmax(1).cpu() == y).sum())
        count += len(y)
    return right / count


def main(argv: Sequence[str] | None = None) -> float:
    """Trains as the command line says, and returns the top-1 accuracy of the average."""
    parser = argparse.ArgumentParser(description="A timm model with DCLS layers (2112.03740).")
    parser.add_argument("--data", type=Path, required=True, help="folder of train and val")
    parser.add_argument("--model", default="convnext_tiny", help="of timm (default: convnext_tiny)")
    parser.add_argument("--size", type=int, default=17, help="of the kernels (default: 17)")
    parser.add_argument("--elements", type=int, default=34, help="of a kernel (default: 34)")
    parser.add_argument("--version", choices=DCLS.VERSIONS, default="v0", help="(default: v0)")
    parser.add_argument("--image-size", type=int, default=224, help="(default: 224)")
    parser.add_argument("--epochs", type=int, default=300, help="(default: 300)")
    parser.add_argument(
        "--warm-up", type=int, default=20, help="epochs, at most a quarter (default: 20)"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="even (default: 128)")
    parser.add_argument("--lr", type=float, help="(default: 4e-3 for a batch of 4096)")
    parser.add_argument(
        "--drop-path", type=float, default=0.1, help="0 if the model has none (default: 0.1)"
    )
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16")
    parser.add_argument("--workers", type=int, default=8, help="(default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", type=Path, help="file for the weights, written each epoch")
    args = parser.parse_args(argv)
    if args.batch_size < 2 or args.batch_size % 2:
        parser.error("--batch-size must be even: mixup mixes pairs")
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")

    timm.utils.random_seed(args.seed)  # of torch, and of numpy and Python for the augmentations
    images, val, classes = make_loaders(args)
    model = make_model(args, classes)
    average = train(model, (images, val), classes, args)
    plain = DCLS.fold(average)  # convolutions of torch alone, with the same outputs
    found = accuracy(plain, val, args)
    print(f"folded: top-1 {found:.2%}")
    return found


if __name__ == "__main__":
    main()
