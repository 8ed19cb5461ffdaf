"""Trains under DDP in two gloo processes with every callback, and writes down what each rank saw."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from firstlight.callbacks import (
    EarlyStopping,
    GradientMonitor,
    HealthMonitor,
    LearningRateScheduler,
    OverfitOneBatch,
    Preflight,
    RunManifest,
    WeightInitialization,
)
from firstlight.schedules import WarmupCosine
from helpers import classes_data, network, supervised


class Record(Callback):
    def __init__(self) -> None:
        self.norms: list[float] = []
        self.rates: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start = pl_module.model[0].weight.detach().clone()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))
        self.rates.append(optimizer.param_groups[0]["lr"])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.manual_seed(100 + rank)  # ranks that do not agree by themselves
    module = supervised(model=network(0.0))
    record = Record()
    # rank 1's data is worse: its own metric alone would stop it first
    stopping = EarlyStopping("val/loss", patience=1, min_delta=100.0)
    probe = OverfitOneBatch(max_steps=60)
    monitor = GradientMonitor()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=6,
        gradient_clip_val=0.5,
        log_every_n_steps=1,
        logger=CSVLogger(folder, "", ""),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[
            WeightInitialization(lsuv=True),
            probe,
            Preflight(fail_on="never"),  # rank 0 asks on its own while the other waits
            HealthMonitor(budget=0.5),  # each rank samples when it has the time
            LearningRateScheduler(WarmupCosine(0.2)),
            monitor,
            record,
            stopping,
            RunManifest(),
        ],
    )
    train = DataLoader(classes_data(48), batch_size=4, shuffle=True)
    trainer.fit(module, train, DataLoader(classes_data(32), batch_size=8))
    trainer.save_checkpoint(folder / "end.ckpt")
    (folder / f"rank{rank}.json").write_text(
        json.dumps(
            {
                "start": record.start.flatten().tolist(),
                "end": module.model[0].weight.detach().flatten().tolist(),
                "norms": record.norms,
                "rates": record.rates,
                "reason": stopping.stopping_reason.name,
                "stopped_epoch": stopping.stopped_epoch,
                "overfit": [probe.result.passed, probe.result.steps],
                "total": float(trainer.callback_metrics["grad/norm/total"]),
                "val/loss": float(trainer.callback_metrics["val/loss"]),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
