"""A rank of two that is lost, in the way that it is told; started by torchrun, or by Lightning's own launcher."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from firstlight.recovery import ExactResume, RankWatch
from helpers import Plain, classes_data, fit, network, weights


class Lost(Callback):
    """Happens to rank 1 in its fourth step, in the first attempt alone."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def _happen(self, trainer: Any, here: str) -> None:
        if (
            trainer.global_rank != 1
            or trainer.global_step != 3
            or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        ):
            return
        if self.fault == f"killed {here}":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "stopped" and here == "before":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.fault == "hangs" and here == "before":
            time.sleep(1000)
        if self.fault == "raises" and here == "before":
            raise ValueError("the label 17 is out of range")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._happen(trainer, "before")

    def on_after_backward(self, trainer, pl_module):
        self._happen(trainer, "between")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._happen(trainer, "while saving")


class Last(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / "new.ckpt")
        if trainer.is_global_zero:
            (self.folder / "new.ckpt").replace(self.folder / "last.ckpt")


def main(folder: Path, fault: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(1)
    data: Any = DataLoader(classes_data(96), batch_size=8, shuffle=True)
    if fault == "fewer batches":
        data = DataLoader(classes_data(96 if os.environ.get("LOCAL_RANK", "0") == "0" else 64), batch_size=8)
    module, last = Plain(network()), folder / "last.ckpt"
    trainer = fit(
        module,
        ExactResume(),
        RankWatch(timeout=6.0, dead_after=4.0),
        Lost(fault),
        Last(folder),
        data=data,
        ckpt=str(last) if last.exists() else None,
        devices=2,
        strategy="ddp",
        use_distributed_sampler="fewer" not in fault,
        max_epochs=2,
    )
    torch.save(weights(module), folder / f"end{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
