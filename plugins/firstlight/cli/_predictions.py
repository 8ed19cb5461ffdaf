"""What ``predict`` leaves behind."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn

from firstlight._batch import size_of, tensors_of
from firstlight.cli._prediction_table import Part, columns
from firstlight.cli._say import say, short
from firstlight.cli._table_files import TableFormat, write_table
from firstlight.losses import BinaryCrossEntropyLoss, BinaryFocalLoss, CrossEntropyLoss, FocalLoss

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, CrossEntropyLoss, FocalLoss)
_OF_TWO = (nn.BCEWithLogitsLoss, BinaryCrossEntropyLoss, BinaryFocalLoss)


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` or ``.parquet``, a sample a row; what is no table goes to ``predictions.pt``.

    Logits of classes become ``class`` and ``confidence``; every other tensor ``[N, ...]`` and list of N values, alone,
    in a tuple or in a mapping, becomes one or more columns.
    """

    def __init__(self, folder: Path, form: TableFormat = "csv") -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.form = form
        self.parts: list[Part] = []

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
        """Keep the batch's answers, in host memory."""
        if prediction is None:
            return
        logits = isinstance(prediction, Tensor) and prediction.is_floating_point()
        if logits and _are_of_classes(pl_module, prediction, batch):
            confidence, label = torch.softmax(prediction.float(), dim=1).max(dim=1)
            prediction = {"class": label, "confidence": confidence}
        elif logits and _are_of_two(pl_module, prediction):
            probability = torch.sigmoid(prediction.float().flatten())
            label = probability > 0.5
            confidence = torch.where(label, probability, 1 - probability)
            prediction = {"class": label.long(), "confidence": confidence}
        indices = _numbers(batch_indices)
        size = len(indices) if indices is not None else size_of(batch) or size_of(prediction) or 0
        self.parts.append(Part(dataloader_idx, batch_idx, size, indices, _to_host(prediction)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, and say where."""
        gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
        if trainer.world_size > 1:
            torch.distributed.gather_object(self.parts, gathered)
        else:
            gathered = [self.parts]
        self.parts = []
        if gathered is None:
            return
        parts = [part for of_rank in gathered for part in of_rank]
        if not parts:
            say("no predictions: predict_step returned none")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        table = columns(parts)
        if table is not None:
            path = self.folder / f"predictions.{self.form}"
            write_table(table, path, self.form)
            say(f"{len(table['index'])} predictions: {short(path)}")
            return
        path = self.folder / "predictions.pt"
        part_file = path.with_name(f"{path.name}.part")
        torch.save([part.output for part in sorted(parts, key=lambda part: (part.loader, part.batch))], part_file)
        part_file.replace(path)
        say(f"predictions of {len(parts)} batches, which are no table: {short(path)}")


def _are_of_classes(module: LightningModule, prediction: Tensor, batch: Any) -> bool:
    """Whether ``[N, C]`` are logits of classes: by the module's loss; by the batch's target if the loss is unknown."""
    if prediction.ndim != 2 or prediction.shape[1] < 2:
        return False
    loss = getattr(module, "loss", None)
    if isinstance(loss, nn.Module) and type(loss).__module__.partition(".")[0] in ("torch", "firstlight"):
        return isinstance(loss, _OF_CLASSES)
    target = batch.get("target") if isinstance(batch, Mapping) else next(iter(tensors_of(batch)[1:]), None)
    if not isinstance(target, Tensor) or target.shape != prediction.shape[:1]:
        return False
    return not (target.is_floating_point() or target.is_complex())


def _are_of_two(module: LightningModule, prediction: Tensor) -> bool:
    """Whether ``[N]`` or ``[N, 1]`` are logits of one class against the rest."""
    one = prediction.ndim == 1 or (prediction.ndim == 2 and prediction.shape[1] == 1)
    return one and isinstance(getattr(module, "loss", None), _OF_TWO)


def _numbers(indices: Sequence[Any] | None) -> list[int] | None:
    """Return indices as plain numbers; None where a sampler gives none or something else."""
    try:
        return [operator.index(index) for index in indices or ()] or None
    except TypeError:
        return None


def _to_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # of a class that torch.load(weights_only=True) would refuse
    if isinstance(value, Mapping):
        return {key: _to_host(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_host(inner) for inner in value)
    return value
