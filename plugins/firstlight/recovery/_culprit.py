"""Where a value that is not finite came from."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule

from firstlight._batch import tensors_of
from firstlight._rng import isolated_rng


def culprit_of(module: LightningModule, batch: Any, batch_idx: int) -> str:
    """Name what is not finite: a weight, the batch, or the first module whose output is, when a copy runs the batch.

    An empty string where nothing is found: a copy may not be able to run, and a gradient may fail where no output does.
    Under DDP all ranks call this, since a training step may talk to the others.
    """
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the weights {name}"
    if any(not bool(torch.isfinite(t).all()) for t in tensors_of(batch) if t.is_floating_point()):
        return "the batch itself"
    if not module.automatic_optimization:
        return ""
    found: list[str] = []

    def watch(path: str) -> Any:
        def look(_: Any, __: Any, output: Any) -> None:
            floating = [t for t in tensors_of([output]) if t.is_floating_point()]
            if not found and any(not bool(torch.isfinite(t).all()) for t in floating):
                found.append(path)

        return look

    trainer = module._trainer
    try:
        with isolated_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module._trainer = None
            twin = copy.deepcopy(module)
            for path, part in twin.named_modules():
                part.register_forward_hook(watch(path or type(module).__name__))
            twin.training_step(batch, batch_idx)
    except Exception:  # the run's own step has just done it; a copy may not be able to
        return ""
    finally:
        module._trainer = trainer
    return found[0] if found else ""
