"""The learning rate of a larger batch, from the one that a smaller batch was tuned with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

# A step on k times the items averages k times the gradients. SGD then takes the k small steps in one (Goyal et al.
# 2017, arXiv:1706.02677); Adam divides by the gradient's noise, which falls with the root of k (Malladi et al. 2022,
# arXiv:2205.10287).
POWERS = {"linear": 1.0, "sqrt": 0.5}


def batch_scale(trainer: Trainer, rule: str, reference: int, accumulate: int) -> float:
    """Return by how much ``rule`` scales a rate tuned at ``reference`` items per optimizer step, and say so.

    Raises:
        ValueError: If the train loader does not tell its batch size.
    """
    size = _batch_size(trainer.train_dataloader)
    # Of the strategy, not the number of processes: those that share a model share its batch too.
    processes = int((trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1))
    items = size * processes * accumulate
    scale = float((items / reference) ** POWERS[rule])
    rank_zero_info(
        f"learning rate x {scale:.4g}: {items} items per step ({size} a batch x {processes} processes x {accumulate} "
        f"accumulated), {reference} when it was tuned, {rule} rule"
    )
    return scale


def _batch_size(loader: Any) -> int:
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if not isinstance(size, int):
        raise ValueError(
            f"batch_scaling needs the batch size, and the train loader ({type(loader).__name__}) tells none; "
            "leave batch_scaling out and set the learning rate itself"
        )
    return size
