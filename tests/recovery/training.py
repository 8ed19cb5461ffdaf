"""A small run with everything that draws or adds up: what it leaves, and where it can be stopped."""

from __future__ import annotations

import csv
import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from helpers import classes_data, fit, network, weights


class Augmented(Dataset[Any]):
    """Draws from all three generators for every sample, wherever it is fetched."""

    def __init__(self, num_samples: int = 40) -> None:
        self.data = classes_data(num_samples)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        x, y = self.data[index]
        return x + 0.1 * torch.randn(x.shape) + 0.1 * random.gauss(0, 1) + 0.1 * float(np.random.randn()), y


class Stream(IterableDataset[Any]):
    """As many samples without a length, shared out to workers, in an order and with noise of its own epoch."""

    def __init__(self, num_samples: int = 40) -> None:
        self.data = classes_data(num_samples)
        self.epoch = 0

    def __iter__(self) -> Any:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for index in range(worker, len(self.data), workers):
            x, y = self.data[index]
            yield (x + 0.1 * torch.randn(x.shape) if info else x), y


class Everything(LightningModule):
    """Dropout, batch norm, noise from three generators, a metric object, and values logged in all ways."""

    def __init__(self, *, manual: bool = False, schedule: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = network()
        self.accuracy = MulticlassAccuracy(4)
        self.automatic_optimization = not manual
        self.schedule = schedule

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self.net(x + 0.01 * random.random() + 0.01 * float(np.random.rand()))
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy(logits, y if y.ndim == 1 else y.argmax(1))
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("train/most", loss, on_step=False, on_epoch=True, reduce_fx="max")
        if batch_idx == 1:
            self.log("train/seldom", loss, on_step=False, on_epoch=True)
        if not self.automatic_optimization:
            for number, optimizer in enumerate(self.optimizers()):
                optimizer.zero_grad()
                if number == 0:
                    self.manual_backward(loss)
                if number == 0 or batch_idx % 2:
                    optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val/loss", loss)

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            schedulers = [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3), "interval": "step"}]
            return [optimizer], schedulers if self.schedule else []
        halves = self.net[:3], self.net[3:]
        return [torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9) for half in halves]


class Seen(Callback):
    """Writes down every batch, and the loss."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, batch[0].sum().item(), batch[1].tolist()))


class SaveAt(Checkpoint):
    """Saves after every batch, validation and epoch, when all other callbacks have acted."""

    def __init__(self, folder: Path, *, batches: bool = True) -> None:
        self.folder, self.batches, self.count = folder, batches, 0

    def _save(self, trainer: Any, where: str) -> None:
        self.count += 1
        trainer.save_checkpoint(self.folder / f"{self.count:02d}-{where}.ckpt")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.batches:
            self._save(trainer, "batch")

    def on_validation_end(self, trainer, pl_module):
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer, pl_module):
        self._save(trainer, "epoch")


def run(
    folder: Path,
    *callbacks: Callback,
    data: Any,
    ckpt: Any = None,
    module: Any = Everything,
    seed: int = 0,
    **kwargs: Any,
) -> tuple[dict[str, Any], list[Any], list[dict[str, str]]]:
    """Return what a run leaves: weights, optimizers and random numbers; its batches; and the rows of its log."""
    random.seed(seed)
    np.random.seed(seed)
    made, seen = module(), Seen()
    logger = CSVLogger(folder, name="", version="")
    settings = {"max_epochs": 3, "logger": logger, "log_every_n_steps": 1} | kwargs
    settings["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
    val = None if isinstance(data, LightningDataModule) else DataLoader(classes_data(16), batch_size=8)
    trainer = fit(made, *callbacks, seen, data=data, val=val, ckpt=ckpt, **settings)
    left = weights(made)
    for number, optimizer in enumerate(trainer.optimizers):
        for key, state in optimizer.state_dict()["state"].items():
            left |= {f"optimizer/{number}/{key}/{name}": value for name, value in state.items()}
        left[f"lr/{number}"] = torch.tensor(optimizer.param_groups[0]["lr"])
    left["torch"] = torch.random.get_rng_state()
    left["numpy"] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))
    left["python"] = torch.tensor(random.getstate()[1])
    path = folder / "metrics.csv"
    return left, seen.batches, list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def plain(workers: int = 0, **kwargs: Any) -> DataLoader[Any]:
    """Return a loader as anybody writes it."""
    settings = {"batch_size": 8, "shuffle": True, "num_workers": workers} | kwargs
    return DataLoader(settings.pop("dataset", None) or Augmented(), **settings)


class ByEpoch(LightningDataModule):
    """A loader for each epoch, of other samples and with an order of its own."""

    def __init__(self, *, seeded: bool = True, **kwargs: Any) -> None:
        super().__init__()
        self.seeded, self.kwargs = seeded, kwargs

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch
        generator = torch.Generator().manual_seed(epoch) if self.seeded else None
        return plain(dataset=Augmented(40 - 8 * (epoch % 2)), generator=generator, **self.kwargs)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(classes_data(16), batch_size=8)


plain_persistent = functools.partial(plain, persistent_workers=True)
