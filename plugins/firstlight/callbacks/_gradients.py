"""What is done to gradients, and the loss scale that may be in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def local(grads: Iterable[Tensor]) -> list[Tensor]:
    """Return the shards that this rank holds, which share memory with the gradients."""
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in grads]


def multiply_(grads: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all by a scalar on their device, which is not rounded to half precision."""
    for device, dtype in {(gradient.device, gradient.dtype) for gradient in grads}:
        some = local(gradient for gradient in grads if (gradient.device, gradient.dtype) == (device, dtype))
        if dtype in (
            torch.float16,
            torch.bfloat16,
        ):  # a factor below 6e-5 would lose its digits
            for gradient in some:
                gradient.copy_(gradient.float() * factor.to(device))
        else:
            torch._foreach_mul_(some, factor.to(device, dtype))


def scaler_of(trainer: Trainer) -> Any:
    """Return the scaler of 16-mixed precision, or None."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def loss_scale(trainer: Trainer, optimizer: Optimizer) -> Tensor | None:
    """Return the loss scale that is still in the gradients before the step: fused kernels take it out themselves."""
    scaler = scaler_of(trainer)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    state = scaler._per_optimizer_states.get(id(optimizer))
    if state is not None and state["stage"] is not OptState.READY:
        return None  # GradientClipping has taken it out
    scale: Tensor | None = scaler._get_scale_async()
    return scale
