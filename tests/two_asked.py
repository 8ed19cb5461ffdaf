"""Trains under DDP in two gloo processes with Preflight; the last run, of a set-up that cannot learn, ends them."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from firstlight.callbacks import Preflight
from helpers import Plain, fit, loader, network, weights

RANK = int(os.environ.get("LOCAL_RANK", "0"))


class Synced(Plain):
    """Its loss is a mean over ranks, by Lightning's way and by torch's own; batch norm, dropout."""

    def __init__(self, way: str = "") -> None:
        torch.manual_seed(1)
        super().__init__(network())
        self.way = way

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.way == "gather":
            self.log("mean", self.all_gather(loss.detach()).mean(), sync_dist=True)
        elif self.way == "torch":
            total = loss.detach().clone()
            torch.distributed.all_reduce(total)
            loss = loss + 0.0 * total / torch.distributed.get_world_size()
        return loss


class SoftmaxTwice(Synced):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).softmax(1), batch[1])


def run(module: Plain, folder: Path, *callbacks: Any) -> dict[str, Any]:
    fit(
        module,
        *callbacks,
        data=loader(num_samples=256),
        devices=2,
        strategy="ddp",
        logger=CSVLogger(folder, name="", version=""),
    )
    asked = callbacks[0] if callbacks else Preflight()
    # buffers of batch norm are each rank's own
    return {
        "weights": {name: value.tolist() for name, value in weights(module).items()},
        "random": torch.random.get_rng_state().tolist(),
        "skipped": asked.skipped,
        "asked": asked.report is not None,
        "findings": [str(finding) for finding in asked.report.findings] if asked.report is not None else [],
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for way in ("gather", "torch"):
        found[f"bare {way}"] = run(Synced(way), folder / f"bare{way}")
        found[f"asked {way}"] = run(Synced(way), folder / f"asked{way}", Preflight(budget_seconds=60))
    try:
        run(Synced(), folder / "fails", Preflight(seed=2**70))  # no seed of torch's
    except (RuntimeError, ValueError, OverflowError) as error:
        found["failed"] = f"{type(error).__name__}: {error}"
    (folder / f"rank{RANK}.json").write_text(json.dumps(found))
    run(SoftmaxTwice(), folder / "sick", Preflight())
    (folder / f"went on {RANK}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
