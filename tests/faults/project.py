"""The project whose runs are killed: a step takes 10 ms, a checkpoint 8 MB, and the data come in a fixed order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from firstlight.cli import FirstlightCLI
from firstlight.modules import ObjectiveModule
from helpers import classes_data

EPOCHS, BATCHES = 4, 8
STEPS = EPOCHS * BATCHES
CONFIG = f"""
run_name: tiny
seed_everything: 1
trainer:
  max_epochs: {EPOCHS}
  accelerator: cpu
  devices: 1
  log_every_n_steps: 1
  enable_model_summary: false
  num_sanity_val_steps: 0
learning_rate: {{schedule: {{class_path: WarmupCosine, init_args: {{warmup: 0.25}}}}}}
early_stopping: {{monitor: val/loss, patience: 8}}
checkpoint: {{every_n_train_steps: 4, save_top_k: -1}}
progress_bar: null
run_manifest: null
"""


class FixedOrder:
    """Gives the same batches in the same order in every epoch, and goes on in the middle of one."""

    def __init__(self) -> None:
        self.data, self.batch = classes_data(8 * BATCHES), 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        if self.batch == BATCHES:
            self.batch = 0
        while self.batch < BATCHES:
            self.batch += 1
            yield self.data[8 * (self.batch - 1) : 8 * self.batch]

    def state_dict(self) -> dict[str, int]:
        return {"batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch = state["batch"]


class Data(LightningDataModule):
    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.workers = workers

    def train_dataloader(self) -> Any:
        if self.workers:
            return DataLoader(classes_data(8 * BATCHES), batch_size=8, num_workers=self.workers)
        return FixedOrder()

    def val_dataloader(self) -> Any:
        return DataLoader(classes_data(32), batch_size=8)


class Module(ObjectiveModule):
    """A line of ``steps.txt`` tells each step that was taken; ``stop.txt`` is written before one that takes long."""

    def __init__(self, pause: float = 0.01, megabytes: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pause = pause
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self.ballast = nn.Buffer(torch.arange(megabytes << 18, dtype=torch.float32))

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        return {"task": nn.functional.cross_entropy(self.net(batch[0]), batch[1])}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with Path("steps.txt").open("a") as file:
            file.write(f"{self.trainer.global_step}\n")
        time.sleep(self.pause)


def main(args: list[str]) -> None:
    FirstlightCLI(Module, Data, project_root=Path.cwd(), args=args)


if __name__ == "__main__":
    import sys

    os.environ.setdefault("WANDB_MODE", "offline")
    main(sys.argv[1:])
