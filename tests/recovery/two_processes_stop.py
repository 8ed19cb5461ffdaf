"""Trains for long under DDP in two gloo processes, until told to stop."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from firstlight.recovery import GracefulStop, VerifiedCheckpointIO
from helpers import Plain, loader, trainer


class Tells(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        time.sleep(0.01)
        if trainer.global_step == 5:
            told = self.folder / f"pid-{trainer.global_rank}"
            told.write_text(str(os.getpid()))
            told.rename(self.folder / f"training-{trainer.global_rank}")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    settings = {"devices": 2, "strategy": "ddp", "max_epochs": 1000, "plugins": [VerifiedCheckpointIO()]}
    run = trainer(callbacks=[GracefulStop(dirpath=str(folder)), Tells(folder)], **settings)
    try:
        run.fit(Plain(), loader())
    except SystemExit as end:
        (folder / f"ended-{run.global_rank}").write_text(f"{end.code} {run.global_step}")
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
