"""What a copy of a module may see of the Trainer: plain values, and nothing through which it could act."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

_PLAIN = frozenset(
    {
        "accumulate_grad_batches",
        "current_epoch",
        "estimated_stepping_batches",
        "global_rank",
        "global_step",
        "is_global_zero",
        "is_last_batch",
        "local_rank",
        "max_epochs",
        "max_steps",
        "num_devices",
        "num_nodes",
        "num_training_batches",
        "precision",
        "sanity_checking",
        "training",
        "world_size",
    }
)


class TrainerView:
    """Stands in for the Trainer of a copied module: numbers and flags, no loggers, optimizers or callbacks."""

    logger = None
    loggers = ()
    barebones = True  # logging is off

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        if name in _PLAIN:
            return getattr(self._trainer, name)
        raise AttributeError(f"self.trainer.{name} belongs to the real run")
