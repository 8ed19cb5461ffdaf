"""Trains under DDP in two gloo processes; in the third batch the loss of rank 1 is NaN."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from firstlight.recovery import NonFiniteGuard
from helpers import Plain, fit, network, weights


class NanOnRankOne(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if batch_idx == 2 and self.global_rank == 1 and self.current_epoch == 0 else loss


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    settings: dict[str, Any] = {"devices": 2, "strategy": "ddp", "default_root_dir": folder, "max_epochs": 2}
    torch.manual_seed(1)
    module, guard = NanOnRankOne(network(0.0)), NonFiniteGuard()
    trainer = fit(module, guard, **settings)
    found = {"skipped": guard.skipped_steps, "event": guard.events[0], "stopped": ""}
    found["weights"] = {name: value for name, value in weights(module).items() if "running" not in name}
    try:
        fit(NanOnRankOne(network(0.0)), NonFiniteGuard("stop"), **settings)
    except FloatingPointError as error:
        found["stopped"] = str(error)
    torch.save(found, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
