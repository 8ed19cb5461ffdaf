"""What modules with one objective and modules with several have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight._require import require
from firstlight.optimizers import param_groups

Stage: TypeAlias = Literal["train", "val", "test"]


def log_values(module: LightningModule, values: Mapping[str, Tensor], *, stage: Stage, batch_size: int) -> None:
    """Log scalars of a step: in training as they are, in evaluation the mean over samples and ranks."""
    training = stage == "train"
    for name, value in values.items():
        module.log(
            name,
            value.detach(),
            on_step=training,
            on_epoch=not training,
            # a value on the progress bar is read from the device at every training step
            prog_bar=name == "val/loss",
            # ranks log their own training loss; averaging it would cost a collective per step
            sync_dist=not training,
            batch_size=batch_size,
        )


def optimizer_of(module: nn.Module, make: OptimizerCallable, *, name: str) -> Optimizer:
    """Return the optimizer that ``make`` builds for the parameters of ``module``, in groups that decay and do not."""
    # weight_decay=None: groups that decay take the optimizer's own number, so it is written in one place.
    optimizer: object = make(param_groups(module, weight_decay=None))
    require(isinstance(optimizer, Optimizer), name, optimizer, "one that returns an Optimizer", error=TypeError)
    assert isinstance(optimizer, Optimizer)
    return optimizer


def seeded_normal(like: Tensor, seed: int) -> Tensor:
    """Return standard normal numbers in the shape of ``like``, the same on every device, touching no global state."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like.device)


def check_optimizer(name: str, optimizer: object) -> None:
    """Raise ``TypeError`` unless ``optimizer`` is ``None`` or a function."""
    ok = optimizer is None or callable(optimizer)
    require(ok, name, optimizer, "a function of parameter groups", error=TypeError)
