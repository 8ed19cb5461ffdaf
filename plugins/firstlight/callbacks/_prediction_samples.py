"""What the model says about validation samples: a table of the first ones and a confusion matrix."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from firstlight._require import require
from firstlight.tracking import confusion_figure

_MOST_CLASSES = 1000  # the matrix has a cell for each pair of classes
_ASIDE = 2**31 - 1


@final
class PredictionSamples(Callback):
    """Shows predictions on validation data: a table of the first ``num_samples``, and a confusion matrix.

    It needs a ``validation_step`` that returns ``{"output": logits[N, C], "target": class indices[N]}``; where it gets
    something else it says so once and stands aside. Targets outside 0..C-1 (an ignored index) are not counted. Of
    several validation loaders the first is shown. Logged every ``every_n_epochs`` and after the last validation.

    Role: observer.
    Reads: batches and outputs of validation; under DDP the counts of all ranks, the samples of rank 0.
    Writes: ``confusion_matrix.png`` in the run folder at the end of ``fit``, if no logger took the picture.
    Logs: table ``val/predictions`` and picture ``val/confusion_matrix``, to loggers that have tables and pictures.

    Raises:
        ValueError: ``num_samples`` is negative or ``every_n_epochs`` is below 1.
    """

    role: ClassVar[str] = "observer"

    def __init__(self, *, num_samples: int = 16, class_names: list[str] | None = None, every_n_epochs: int = 1) -> None:
        require(num_samples >= 0, "num_samples", num_samples, "0 or more")
        require(every_n_epochs >= 1, "every_n_epochs", every_n_epochs, "1 or more")
        self.num_samples = num_samples
        self.class_names = class_names
        self.every_n_epochs = every_n_epochs
        self._aside = False
        self._counting = False
        self._logged = True
        self._counts: Tensor | None = None
        self._samples: list[dict[str, Tensor]] = []
        self._matrix: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run."""
        self._aside, self._logged, self._matrix = False, True, None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start over."""
        self._counting = not trainer.sanity_checking and not self._aside
        self._counts, self._samples = None, []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count on the device, and keep the first samples; nothing here waits for the device."""
        if not self._counting or self._aside or dataloader_idx != 0:
            return
        found = _logits_and_target(outputs)
        if found is None or not 2 <= found[0].shape[1] <= _MOST_CLASSES:
            self._stand_aside(found)
            return
        logits, target = found
        self._count(logits, target)
        self._keep(logits, target, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over ranks, and log if it is time."""
        if not self._counting:
            return
        matrix = self._matrix_of_all_ranks(trainer, pl_module.device)
        if matrix is not None:
            self._matrix, self._logged = matrix.cpu(), False
            if trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
                self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last validation, whichever epoch it was, and leave its picture where no logger takes one."""
        if not self._logged:
            self._log(trainer)
        if self._matrix is None or _picture_loggers(trainer):
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks: log_dir is a broadcast
        if not trainer.is_global_zero:
            return
        if not _has_matplotlib():
            rank_zero_info("no confusion_matrix.png: matplotlib is not installed; pip install 'firstlight[viz]'")
            return
        folder.mkdir(parents=True, exist_ok=True)
        confusion_figure(self._matrix, self._names(len(self._matrix))).savefig(folder / "confusion_matrix.png")

    def _log(self, trainer: Trainer) -> None:
        self._logged = True
        if not trainer.is_global_zero or self._matrix is None:
            return
        for logger in _picture_loggers(trainer):
            if self._samples:
                columns, rows = self._table(logger)
                logger.log_table("val/predictions", columns=columns, data=rows, step=trainer.global_step)
            if _has_matplotlib():
                figure = confusion_figure(self._matrix, self._names(len(self._matrix)))
                logger.log_image("val/confusion_matrix", [_pixels(figure)], step=trainer.global_step)

    def _stand_aside(self, found: tuple[Tensor, Tensor] | None) -> None:
        self._aside = True
        got = f"{found[0].shape[1]} classes" if found else "something else"
        rank_zero_warn(
            "PredictionSamples stands aside: it needs validation_step to return a dict with 'output' (logits[N, C], "
            f"C from 2 to {_MOST_CLASSES}) and 'target' (class indices[N]); it got {got}"
        )

    def _count(self, logits: Tensor, target: Tensor) -> None:
        classes = logits.shape[1]
        if self._counts is None:
            self._counts = torch.zeros(classes * classes + 1, dtype=torch.int64, device=logits.device)
        # One cell more than the matrix takes what is outside; a mask would need its size on the host.
        cell = torch.where(
            (target >= 0) & (target < classes), target.long() * classes + logits.argmax(dim=1), classes * classes
        )
        self._counts.scatter_add_(0, cell, torch.ones_like(cell))

    def _keep(self, logits: Tensor, target: Tensor, batch: Any) -> None:
        wanted = self.num_samples - sum(len(kept["target"]) for kept in self._samples)
        if wanted <= 0:
            return
        confidence, prediction = logits[:wanted].float().softmax(dim=1).max(dim=1)
        kept = {"prediction": prediction, "confidence": confidence, "target": target[:wanted].clone()}
        image = _inputs(batch)
        if image is not None and len(image) == len(target) and _are_images(image):
            kept["image"] = image[:wanted].clone()
        self._samples.append(kept)

    def _matrix_of_all_ranks(self, trainer: Trainer, device: torch.device) -> Tensor | None:
        """Agree on the number of classes first: a rank without a batch knows none, and must take part in the sum."""
        classes = _ASIDE if self._aside else 0 if self._counts is None else int((len(self._counts) - 1) ** 0.5)
        if trainer.world_size > 1:
            agreed = trainer.strategy.reduce(torch.tensor(classes, device=device), reduce_op="max")
            classes = int(agreed)
        if classes in (0, _ASIDE):
            self._aside = classes == _ASIDE
            return None
        counts = self._counts
        if counts is None:
            counts = torch.zeros(classes * classes + 1, dtype=torch.int64, device=device)
        if trainer.world_size > 1:
            counts = trainer.strategy.reduce(counts, reduce_op="sum")
        assert isinstance(counts, Tensor)
        return counts[:-1].view(classes, classes)

    def _names(self, classes: int) -> list[str] | None:
        """Return the class names if there is one for each class."""
        if self.class_names is not None and len(self.class_names) != classes:
            rank_zero_warn(
                f"PredictionSamples shows numbers: class_names has {len(self.class_names)} names for {classes} classes"
            )
            self.class_names = None
        return self.class_names

    def _table(self, logger: Any) -> tuple[list[str], list[list[Any]]]:
        keys = [key for key in ("image", "prediction", "confidence", "target") if all(key in s for s in self._samples)]
        kept = {key: torch.cat([sample[key] for sample in self._samples]).cpu() for key in keys}
        names = self._names(len(self._matrix) if self._matrix is not None else 0)
        rows = []
        for i in range(len(kept["target"])):
            row: list[Any] = [_picture(kept["image"][i], logger)] if "image" in kept else []
            prediction, target = int(kept["prediction"][i]), int(kept["target"][i])
            row += [_named(prediction, names), float(kept["confidence"][i]), _named(target, names)]
            rows.append([*row, prediction == target])
        return [*keys, "right"], rows


def _logits_and_target(outputs: Any) -> tuple[Tensor, Tensor] | None:
    if not isinstance(outputs, Mapping):
        return None
    logits, target = outputs.get("output"), outputs.get("target")
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        return None
    fits = logits.ndim == 2 and logits.is_floating_point() and target.shape == logits.shape[:1]
    whole = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    return (logits.detach(), target.detach()) if fits and whole else None


def _inputs(batch: Any) -> Tensor | None:
    found = batch.get("input") if isinstance(batch, Mapping) else batch[0] if isinstance(batch, (tuple, list)) else None
    return found.detach() if isinstance(found, Tensor) else None


def _are_images(inputs: Tensor) -> bool:
    return inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[1] in (1, 3))


def _picture(image: Tensor, logger: Any) -> Any:
    """Stretch one image to 0..255, since its normalization is not known here."""
    pixels = image.float()
    low, high = pixels.min(), pixels.max()
    pixels = ((pixels - low) / (high - low).clamp(min=1e-12) * 255.0).byte()
    pixels = pixels.movedim(0, -1).squeeze(-1) if pixels.ndim == 3 else pixels
    if not isinstance(logger, WandbLogger):
        return pixels.numpy()
    import wandb

    return wandb.Image(pixels.numpy())


def _named(index: int, names: list[str] | None) -> str:
    return names[index] if names is not None and 0 <= index < len(names) else str(index)


def _picture_loggers(trainer: Trainer) -> list[Any]:
    return [logger for logger in trainer.loggers if hasattr(logger, "log_table") and hasattr(logger, "log_image")]


def _pixels(figure: Any) -> Any:
    import numpy

    figure.canvas.draw()
    return numpy.asarray(figure.canvas.buffer_rgba())[..., :3]


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None
