"""GradientNoise: annealed Gaussian noise on the gradients."""

from __future__ import annotations

import os
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from firstlight._require import require


@final
class GradientNoise(Callback):
    """Add ``N(0, eta / (1 + step) ** gamma)`` to every gradient before the optimizer step, and before any clipping.

    The noise is a function of seed and step alone: no other random number changes, a resume goes on exactly, and all
    ranks of DDP add the same noise, as they must, since their gradients are already averaged. Shards of a sharded
    model get noise of their own.

    Role: actor; it changes gradients.
    Reads: ``trainer.global_step``. Writes: gradients. Logs: nothing.
    Source: Neelakantan et al. 2015, arXiv:1511.06807 (``eta`` 0.01, 0.3 or 1; ``gamma`` 0.55).

    Args:
        eta: variance at step 0.
        gamma: how fast it falls.
        seed: of the noise; default: the seed of ``seed_everything``, else 0.

    Raises:
        ValueError: ``eta`` or ``gamma`` below zero.
    """

    role: ClassVar[str] = "actor"

    def __init__(self, eta: float = 0.01, *, gamma: float = 0.55, seed: int | None = None) -> None:
        require(0 <= eta < float("inf"), "eta", eta, "zero or more, and finite")
        require(0 <= gamma < float("inf"), "gamma", gamma, "zero or more, and finite")
        self.eta = eta
        self.gamma = gamma
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def deviation(self, step: int) -> float:
        """Return the standard deviation of the noise at an optimizer step.

        >>> round(GradientNoise(eta=0.01).deviation(99) ** 2, 7)  # 0.01 / 100 ** 0.55
        0.0007943
        """
        return float((self.eta / (1.0 + step) ** self.gamma) ** 0.5)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        deviation = self.deviation(trainer.global_step)
        seed = self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        fresh: set[torch.device] = set()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient: Any = parameter.grad
                shard = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                require(not shard.is_sparse, "gradient", "a sparse one", "dense: noise on it would fill it")
                generator = self._generators.setdefault(shard.device, torch.Generator(shard.device))
                if shard.device not in fresh:
                    rank = trainer.global_rank if isinstance(gradient, DTensor) else 0
                    generator.manual_seed((seed * 1_000_003 + trainer.global_step) * 65_537 + rank)
                    fresh.add(shard.device)
                noise = torch.randn(shard.shape, device=shard.device, dtype=shard.dtype, generator=generator)
                shard.add_(noise, alpha=deviation)
