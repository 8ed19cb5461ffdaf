"""A script of somebody else's that knows pytorch_lightning alone: accumulation, a schedule, a batch that goes wrong."""

from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
from clients.truth import Truth, data
from torch import nn
from torch.utils.data import DataLoader

WRONG = 7  # the step whose gradient is spoilt


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
        self.truth = Truth()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_after_backward(self):
        if self.global_step == WRONG:
            self.net[0].bias.grad[2] = float("nan")

    def on_before_optimizer_step(self, optimizer):
        self.truth.before_step(self, optimizer)
        if self.global_step == WRONG:
            self.zero_grad()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.truth.after_batch(self, outputs["loss"] * self.trainer.accumulate_grad_batches, batch)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1)
    devices = parser.parse_args().devices
    pl.seed_everything(3)
    module = Net()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=3,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        log_every_n_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(data(), batch_size=6, shuffle=True))
    if trainer.is_global_zero:
        module.truth.save(module)
