"""Trains under FSDP2 in two gloo processes with clipping and its monitor, and writes down what each rank saw."""

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
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from firstlight.callbacks import GradientClipping, GradientMonitor, GradientNoise, OverfitOneBatch, WeightEMA
from helpers import Plain, classes_data


class Sharded(Plain):
    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))

    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Record(Callback):
    def __init__(self) -> None:
        self.after: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        whole = [p.grad.full_tensor() for p in pl_module.parameters()]
        self.after.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in whole]))))
        self.logged.append({key: float(value) for key, value in trainer.callback_metrics.items() if "grad" in key})


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    record, probe = Record(), OverfitOneBatch()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=1,
        log_every_n_steps=1,
        logger=CSVLogger(folder, "", ""),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        # the record comes last: it reads what the monitor has logged
        callbacks=[probe, GradientNoise(eta=0.01), GradientClipping(0.05), GradientMonitor(), WeightEMA(0.9), record],
    )
    trainer.fit(Sharded(), DataLoader(classes_data(48), batch_size=4))
    seen = {"after": record.after, "logged": record.logged, "overfit": probe.result.cause}
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
