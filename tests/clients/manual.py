"""A script of somebody else's: manual optimization with two optimizers that step at different rates."""

from __future__ import annotations

import sys

import torch
from clients.truth import Truth, data
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader


class Adversary(LightningModule):
    """A network that classifies, and a second one that learns to undo the noise put on the input of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.classifier = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)
        )
        self.cleaner = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
        self.truth = Truth()

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        inputs, target = batch
        noisy = inputs + 0.1 * torch.randn_like(inputs)
        loss = nn.functional.cross_entropy(self.classifier(noisy), target)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2:
            cleaning = nn.functional.mse_loss(self.cleaner(noisy), inputs)
            second.zero_grad()
            self.manual_backward(cleaning)
            second.step()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self.classifier(batch[0]), batch[1]))

    def on_before_optimizer_step(self, optimizer):
        self.truth.before_step(self, optimizer)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.truth.after_batch(self, outputs["loss"], batch)

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.classifier.parameters(), lr=0.1, momentum=0.9),
            torch.optim.Adam(self.cleaner.parameters(), lr=1e-3),
        )


def watched() -> list:
    """Return callbacks that change nothing when told to act on nothing; the average holds the newest weights alone."""
    from firstlight.callbacks import (
        EarlyStopping,
        GradientClipping,
        GradientMonitor,
        LearningRateScheduler,
        OverfitOneBatch,
        WeightEMA,
    )
    from firstlight.schedules import Constant

    return [
        LearningRateScheduler(Constant()),
        GradientMonitor(),
        GradientClipping(max_norm=1e9),
        EarlyStopping("val/loss", patience=100),
        WeightEMA(decay=0.0),
        OverfitOneBatch(on_fail="warn"),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    seed_everything(3)
    module = Adversary()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        log_every_n_steps=3,
        logger=CSVLogger(".", name="", version=""),
        enable_progress_bar=False,
        callbacks=watched() if "--with-firstlight" in sys.argv else None,
    )
    trainer.fit(module, DataLoader(data(), batch_size=6, shuffle=True), DataLoader(data(), batch_size=30))
    module.truth.save(module)
