"""What ``predict`` leaves behind."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from firstlight.cli._say import say, short


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` (index, class, confidence) for logits ``[N, C]``, else ``predictions.pt``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.rows: list[tuple[int, int, int, float]] = []  # loader, index, class, confidence
        self.outputs: list[Any] = []
        self.counts: dict[int, int] = {}

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the batch's answers, in host memory: a class and a number for each sample."""
        if isinstance(prediction, Tensor) and prediction.ndim == 2 and prediction.is_floating_point():
            confidence, label = torch.softmax(prediction.float(), dim=1).max(dim=1)
            first = self.counts.get(dataloader_idx, 0)
            self.counts[dataloader_idx] = first + len(label)
            index = list(batch_indices) if batch_indices else range(first, first + len(label))
            loader = [dataloader_idx] * len(label)
            self.rows += zip(loader, index, label.tolist(), confidence.tolist(), strict=True)
        else:
            self.outputs.append(_to_host(prediction))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, and say where."""
        parts: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(parts, (self.rows, self.outputs))
        else:
            parts = [(self.rows, self.outputs)]
        if not trainer.is_global_zero:
            return
        # A dictionary: the distributed sampler repeats samples so that all processes have as many.
        rows = {row[:2]: row for part, _ in parts for row in part}
        outputs = [output for _, part in parts for output in part]
        self.folder.mkdir(parents=True, exist_ok=True)
        if rows:
            path = self.folder / "predictions.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                several = len({loader for loader, _ in rows}) > 1
                writer.writerow([*(["loader"] if several else []), "index", "class", "confidence"])
                for loader, index, label, confidence in (rows[key] for key in sorted(rows)):
                    writer.writerow([*([loader] if several else []), index, label, f"{confidence:.6f}"])
            say(f"{len(rows)} predictions: {short(path)}")
        if outputs:
            path = self.folder / "predictions.pt"
            torch.save(outputs, path)
            say(f"predictions of {len(outputs)} batches: {short(path)}")


def _to_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {k: _to_host(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_host(v) for v in value]
    return value
