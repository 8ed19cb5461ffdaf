"""The state of a training as it was at a step, in the host's memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor


class Snapshot:
    """Weights, buffers and optimizer states, on the host; put back in place, so that nobody's references break."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.step = trainer.global_step
        self._state = {name: _on_host(value) for name, value in module.state_dict().items()}
        self._optimizers = [_on_host(optimizer.state_dict()) for optimizer in trainer.optimizers]

    @property
    def is_good(self) -> bool:
        """Whether all weights and buffers in it are finite."""
        tensors = [v for v in self._state.values() if isinstance(v, Tensor) and v.is_floating_point()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    @torch.no_grad()
    def put_back(self, trainer: Trainer, module: LightningModule) -> None:
        """Set weights, buffers and optimizer states; rates stay what the schedule says now."""
        for name, value in module.state_dict().items():
            if isinstance(value, Tensor):
                value.copy_(self._state[name])
        for optimizer, saved in zip(trainer.optimizers, self._optimizers, strict=True):
            rates = [group.get("lr") for group in optimizer.param_groups]
            optimizer.load_state_dict(copy.deepcopy(saved))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_host(item) for item in value)
    return copy.deepcopy(value)
