"""BatchMixing: MixUp and CutMix on training batches, and on nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from firstlight._require import require
from firstlight._shadows import Shadows
from firstlight.mixing import CutMix, MixUp


@final
class BatchMixing(Callback):
    """Mix the samples of training batches, each batch with one of ``mixings`` or, with ``1 - p``, not at all.

    Batches are ``(input, target)`` or a mapping with "input" and "target"; targets become probabilities ``[N, C]``,
    of unmixed batches too, so that the loss sees one kind. Validation, test and prediction are left alone. The draw is
    a function of seed, epoch and batch alone: no other random number changes, a resume goes on exactly, and under DDP
    each rank mixes differently.

    Role: actor; it changes training batches after they reach the device.
    Reads: batches. Writes: new batches; the tensors it was given stay as they are. Logs: nothing.

    Args:
        mixings: :class:`~firstlight.mixing.MixUp` and :class:`~firstlight.mixing.CutMix` objects.
        num_classes: width of the soft targets.
        p: fraction of batches that are mixed.
        seed: of the draws; default: the seed of ``seed_everything``, else 0.

    Raises:
        ValueError: no mixing, ``p`` outside [0, 1], fewer than two classes.
        TypeError: a batch of another form.
    """

    role: ClassVar[str] = "actor"
    in_step: ClassVar[bool] = False  # experiments on copies go without it

    def __init__(
        self, mixings: Sequence[MixUp | CutMix], num_classes: int, *, p: float = 1.0, seed: int | None = None
    ) -> None:
        require(len(mixings) > 0, "mixings", mixings, "at least one of MixUp and CutMix")
        for mixing in mixings:
            require(isinstance(mixing, (MixUp, CutMix)), "mixings", mixing, "MixUp or CutMix objects", error=TypeError)
        require(num_classes >= 2, "num_classes", num_classes, "two or more")
        require(0 <= p <= 1, "p", p, "between 0 and 1")
        self.mixings = list(mixings)
        self.num_classes = num_classes
        self.p = p
        self.seed = seed
        self._unmixed = MixUp(alpha=0.0)
        self._shadows = Shadows()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning asks the datamodule first, and the module only if that one does not override the hook.
        datamodule: Any = getattr(trainer, "datamodule", None)
        owner = pl_module if datamodule is None else datamodule
        overridden = datamodule is not None and is_overridden("on_after_batch_transfer", datamodule)
        inner = (datamodule if overridden else pl_module).on_after_batch_transfer

        def on_after_batch_transfer(batch: Any, dataloader_idx: int) -> Any:
            batch = inner(batch, dataloader_idx)
            return self._mix(trainer, batch) if trainer.training else batch

        self._shadows.put(owner, "on_after_batch_transfer", on_after_batch_transfer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shadows.lift()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._shadows.lift()

    def _mix(self, trainer: Trainer, batch: Any) -> Any:
        generator = torch.Generator().manual_seed(self._draw_seed(trainer))
        chosen: MixUp | CutMix = self._unmixed
        if float(torch.rand((), generator=generator)) < self.p:
            chosen = self.mixings[int(torch.randint(len(self.mixings), (), generator=generator))]
        if isinstance(batch, Mapping) and {"input", "target"} <= batch.keys():
            inputs, target = chosen(batch["input"], batch["target"], self.num_classes, generator)
            return {**batch, "input": inputs, "target": target}
        ok = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
        expected = "(input, target) tensors or a mapping with 'input' and 'target'"
        require(ok, "batch", type(batch).__name__, expected, error=TypeError)
        return chosen(batch[0], batch[1], self.num_classes, generator)

    def _draw_seed(self, trainer: Trainer) -> int:
        """Mix seed, rank, epoch and batch into one number, by multipliers of a linear congruential generator."""
        seed = self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        value = seed
        for part in (trainer.global_rank, trainer.current_epoch, batch):
            value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**63
        return value
