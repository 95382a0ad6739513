"""The toolkit in loops as people write them: compiled, averaged, by accelerate, by Lightning."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import assert_close
from packages import import_or_skip, without_their_warnings
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import DCLS

EPOCHS, FAR = 3, 3000.0


class Net(nn.Module):
    """Two converted depthwise layers that share positions, and an im2col one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.GELU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.Conv2d(4, 16, 3),
        )
        self.head = nn.Linear(16, 3)
        chosen = {"body.0", "body.2", "body.3"}
        DCLS.convert_(
            self,
            dilated_kernel_size=7,
            kernel_count=4,
            share="stage",
            filter_fn=lambda _, name: name in chosen,
        )
        with torch.no_grad():
            for layer in (self.body[0], self.body[3]):
                layer.P[..., 0] = 5  # outside, where the first step leaves none

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(8, 3, 12, 12, generator=generator), torch.arange(8).remainder(3)
    )


def loader() -> DataLoader:
    return DataLoader(data(), batch_size=4)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Large steps of the positions."""
    return torch.optim.SGD(DCLS.param_groups(model, 0.1, 0.05, position_lr_scale=FAR))


def loss_of(model: nn.Module, layers: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y) + DCLS.losses.repulsion(layers)


def train_by_hand(model: nn.Module, epochs: int = EPOCHS) -> nn.Module:
    """What the others must equal."""
    optimizer = optimizer_of(model)
    widths = DCLS.WidthSchedule(model, 2.0, steps=EPOCHS)
    for _ in range(epochs):
        for batch in loader():
            optimizer.zero_grad()
            loss_of(model, model, batch).backward()
            optimizer.step()
            for layer in model.body[::2]:
                layer.clamp_parameters()
            model.body[3].clamp_parameters()
        widths.step()
    return model


def assert_trained(got: nn.Module, want: nn.Module, relative: float = 1e-4) -> None:
    for (name, value), other in zip(
        got.state_dict().items(), want.state_dict().values(), strict=True
    ):
        assert_close(value, other, relative)
        if name.endswith(".P"):
            assert value.abs().max() == 3, "no position has met its limit"
        if name.endswith(".SIG"):
            assert value.unique().tolist() == [pytest.approx(0.23)]


def test_compiled_with_mixed_precision_a_scaler_and_an_average() -> None:
    results = []
    for compiles in (False, True):
        model = Net()
        run = torch.compile(model, backend="aot_eager") if compiles else model
        optimizer = optimizer_of(run)
        handle = DCLS.clamp_after_step(optimizer, run)
        widths = DCLS.WidthSchedule(run, 2.0, steps=EPOCHS)
        tracker = DCLS.PositionTracker(model)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        for epoch in range(EPOCHS):
            for batch in loader():
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_of(run, run, batch)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                average.update_parameters(model)
            widths.step()
            tracker.update(epoch)
        handle.remove()
        results.append((model, average.module, tracker.positions()))
        # The average is evaluated as deployed: rounded, frozen, folded.
        x = data().tensors[0]
        with torch.no_grad():
            before = average(x)
            with DCLS.integer_positions(average):
                inside = average(x)
                assert_close(inside, DCLS.fold(average.module)(x), 1e-4)
            assert not torch.allclose(inside, before)
            DCLS.freeze(average)
            assert_close(average(x), before, 1e-5)
            assert_close(average(x), DCLS.fold(average)(x), 1e-4)
        assert DCLS.lost_elements(run) == {}
    (eager, mean, tracks), (model, other_mean, other_tracks) = results
    assert_trained(model, eager, 2e-2)  # bfloat16 has 8 bits
    for (name, value), other in zip(
        mean.state_dict().items(), other_mean.state_dict().values(), strict=True
    ):
        assert_close(other, value, 2e-2)
        assert not torch.equal(value, eager.state_dict()[name]) or name.endswith("SIG")
    assert tracks.keys() == other_tracks.keys() == {"body.0", "body.3"}
    assert_close(other_tracks["body.0"], tracks["body.0"], 2e-2)


@pytest.fixture
def accelerate() -> Iterator[Any]:
    """The package, without what another use of it left in the process."""
    package = import_or_skip("accelerate")
    package.state.AcceleratorState._reset_state(True)
    yield package
    package.state.AcceleratorState._reset_state(True)


@without_their_warnings
def test_accelerate_trains_saves_and_goes_on(accelerate: Any, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Net()
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    model, optimizer, batches, schedule = accelerator.prepare(
        model, optimizer, DataLoader(data(), batch_size=2), schedule
    )
    DCLS.clamp_after_step(optimizer, model)
    widths = DCLS.WidthSchedule(model, 2.0, steps=EPOCHS)
    accelerator.register_for_checkpointing(widths)

    def epoch() -> None:
        for batch in batches:  # two of these are one of the other loop
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, model, batch))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        widths.step()

    epoch()
    accelerator.save_state(str(tmp_path))
    epoch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    accelerator.load_state(str(tmp_path))
    assert widths.last_step == 1
    for _ in range(EPOCHS - 1):
        epoch()
    assert_trained(accelerator.unwrap_model(model), train_by_hand(Net()))


@without_their_warnings
def test_lightning_trains_saves_and_goes_on(tmp_path: Path) -> None:
    lightning = import_or_skip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.widths = DCLS.WidthSchedule(self.net, 2.0, steps=EPOCHS)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return loss_of(self.net, self, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = optimizer_of(self)
            DCLS.clamp_after_step(optimizer, self)
            return optimizer

        def on_train_epoch_end(self) -> None:
            self.widths.step()

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["widths"] = self.widths.state_dict()

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.widths.load_state_dict(checkpoint["widths"])

    def trainer(epochs: int) -> Any:
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    first = trainer(1)
    first.fit(Module(), loader())
    path = tmp_path / "last.ckpt"
    first.save_checkpoint(path)
    module = Module()
    trainer(EPOCHS).fit(module, loader(), ckpt_path=path)
    assert module.widths.last_step == EPOCHS
    assert_trained(module.net, train_by_hand(Net()))
    plain = DCLS.fold(copy.deepcopy(module.net))
    x = data().tensors[0]
    assert_close(plain(x), module.net(x), 1e-4)
