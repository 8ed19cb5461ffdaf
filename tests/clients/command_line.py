"""A script of somebody else's: LightningCLI, with its settings in command_line.yaml."""

from __future__ import annotations

import torch
from clients.truth import Truth, data
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader


class Net(LightningModule):
    def __init__(self, width: int = 16, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))
        self.truth = Truth()

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0] + 0.1 * torch.randn_like(batch[0])), batch[1])
        self.log("train/loss", loss)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def on_before_optimizer_step(self, optimizer):
        self.truth.before_step(self, optimizer)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.truth.after_batch(self, outputs["loss"], batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 6) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(data(), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(data(), batch_size=30)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cli = LightningCLI(Net, Data)
    cli.model.truth.save(cli.model)
