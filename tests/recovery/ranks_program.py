"""Trains one epoch in two gloo processes, from the start or from a checkpoint, and writes down each rank's samples."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from recovery.training import SaveAt
from torch.utils.data import DataLoader

from firstlight.recovery import ExactResume
from firstlight.sampling import ResumableSampler
from helpers import Plain, classes_data, fit, network


class Samples(Callback):
    """Writes down the first feature of each sample, which no other has."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch[0][:, 0].tolist())


def samples_of(*callbacks: Callback, ckpt: Path | None = None, **kwargs: Any) -> list[list[float]]:
    data, seen = classes_data(48), Samples()
    loader = DataLoader(data, batch_size=4, sampler=ResumableSampler(data))
    saves = any(isinstance(callback, SaveAt) for callback in callbacks)
    settings = {"max_epochs": 1, "use_distributed_sampler": False, "enable_checkpointing": saves} | kwargs
    fit(Plain(network()), ExactResume(), seen, *callbacks, data=loader, ckpt=ckpt, **settings)
    return seen.batches


def main(folder: Path, ckpt: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    found = {
        "whole": samples_of(SaveAt(folder), **two),
        "resumed": samples_of(ckpt=Path(ckpt), **two),
    }
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
