"""Trains under DDP in two gloo processes, unbroken and resumed, and writes down what each rank is left with."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from recovery.training import Everything, SaveAt, plain

from firstlight.recovery import ExactResume
from helpers import fit, same, weights


class Ranked(Callback):
    """Gives each rank random numbers of its own, as a run that wants different dropout on each does."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        torch.manual_seed(100 + trainer.global_rank)


def left_by(*callbacks: Any, ckpt: Any = None) -> dict[str, Any]:
    module = Everything()
    run = fit(
        module,
        *callbacks,
        data=plain(1),
        val=plain(shuffle=False),
        ckpt=ckpt,
        devices=2,
        strategy="ddp",
        max_epochs=2,
        enable_checkpointing=any(isinstance(callback, SaveAt) for callback in callbacks),
    )
    return {**weights(module), "torch": torch.random.get_rng_state(), "loss": run.callback_metrics["train/loss_epoch"]}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"whole": left_by(ExactResume(), Ranked(), SaveAt(folder))}
    for name in ("02-batch", "05-epoch"):
        found[name] = left_by(ExactResume(), Ranked(), ckpt=folder / f"{name}.ckpt")
    alone = left_by(Ranked(), ckpt=folder / "02-batch.ckpt")
    found["differs_without"] = not same(found["whole"], alone)
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
