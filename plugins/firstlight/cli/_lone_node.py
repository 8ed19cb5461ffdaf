"""A run on several machines of which nothing starts the others."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer

from firstlight.cli._errors import UsageError


def refuse_lone_node(trainer: Trainer) -> None:
    """Refuse to wait, half an hour and in silence, for nodes that will never come.

    Raises:
        UsageError: If there are to be several nodes, and neither a launcher nor MASTER_ADDR says where they meet.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise UsageError(
            f"trainer.num_nodes is {trainer.num_nodes}, and nothing started this process as one of several nodes",
            "start it on each of them by torchrun, or by srun in a SLURM job; else --trainer.num_nodes 1",
        )
