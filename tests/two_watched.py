"""Trains under DDP, and under FSDP2, in two gloo processes with HealthMonitor, and writes down what each rank says."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from callbacks.test_health_resume import InOneOrder, Save, Sick
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import HealthMonitor
from firstlight.recovery import NonFiniteGuard
from helpers import Plain, classes_data, fit, weights

RANK = int(os.environ.get("LOCAL_RANK", "0"))


class Collectives(TorchDispatchMode):
    """Counts what this rank's own thread asks of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.seen.append(func._schema.name.removeprefix("c10d::").rstrip("_"))
        return func(*args, **(kwargs or {}))


class Gathers(Plain):
    """Its loss is over all ranks, by hand: a replay on one of them must not wait for the others."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.all_gather(loss.detach())
        return loss


class Sharded(Gathers):
    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def data(bad: int | None = None, batches: int = 20) -> DataLoader:
    """Return this rank's own data; on rank 1 they are larger, and the sample ``bad`` of it holds a NaN."""
    inputs, target = (part.clone() for part in classes_data(4 * batches).tensors)
    if RANK == 1:
        inputs *= 2
        if bad is not None:
            inputs[bad, 0] = torch.nan
    return DataLoader(TensorDataset(inputs, target), batch_size=4)


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.seen.append(float(outputs["loss"]))


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def watched(module: Plain, *others: Callback, watch: bool = True, **kwargs: Any) -> dict[str, Any]:
    monitor, counter, lines = HealthMonitor(budget=0.99), Collectives(), Lines()
    settings = {"devices": 2, "strategy": "ddp", "max_epochs": 1, "data": data(), "use_distributed_sampler": False}
    settings, mine = settings | kwargs, Losses()
    logging.getLogger("lightning.pytorch").addHandler(lines)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addHandler(lines)
    ended = ""
    with warnings.catch_warnings(record=True) as said, counter:
        warnings.simplefilter("always")
        try:
            fit(module, *([monitor] if watch else []), *others, mine, **settings)
        except FloatingPointError as error:
            ended = str(error)
    return {
        "findings": [[f.code, f.where, f.value, f.message] for f in monitor.findings],
        "told": [str(w.message) for w in said if ": FL" in str(w.message)],
        "aside": [line for line in dict.fromkeys(lines.lines) if "HealthMonitor" in line],
        "collectives": {name: counter.seen.count(name) for name in sorted(set(counter.seen))},
        "losses": monitor._readings.losses,
        "own losses": mine.seen,
        "weights": {} if "Sharded" in type(module).__name__ else {k: v.tolist() for k, v in weights(module).items()},
        "ended": ended,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    found["nan"] = watched(Gathers(), data=data(22))  # in its sixth batch
    found["stopped"] = watched(Gathers(), NonFiniteGuard("stop"), data=data(22), default_root_dir=folder)
    found["bare"] = watched(Gathers(), watch=False, max_epochs=6)
    found["clean"] = watched(Gathers(), max_epochs=6)
    sick = {"data": InOneOrder(80), "max_epochs": 33, "strategy": DDPStrategy()}
    found["sick"] = watched(Sick(), Save(folder, (133,)), **sick)
    found["resumed"] = watched(Sick(), ckpt=folder / "133.ckpt", **sick | {"strategy": DDPStrategy()})
    shards = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    found["shards"] = watched(Sharded(), strategy=shards, data=data(22))
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
