"""Gradients of an optimizer: dense or sparse, whole or sharded, of any precision, scaled for fp16 or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

_HALF = (torch.float16, torch.bfloat16)


def gradients(optimizer: Optimizer) -> tuple[list[nn.Parameter], list[Tensor]]:
    owners: list[nn.Parameter] = []
    grads: list[Tensor] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad  # once: each look at it makes an object
            if gradient is not None:
                owners.append(parameter)
                # The norm of a sparse gradient is that of its values once duplicates are summed.
                grads.append(gradient.coalesce().values() if gradient.is_sparse else gradient)
    return owners, grads


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


def norms_of(tensors: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of each tensor, in float32 at least: squares of fp16 gradients overflow."""
    tensors = list(tensors)
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 and not dtypes.isdisjoint(_HALF):
        norms = [norm for tensor in tensors for norm in _foreach_norm([tensor])]
    else:
        norms = list(_foreach_norm(tensors))
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]  # sharded: sums over ranks
    if len({(norm.device, norm.dtype) for norm in norms}) > 1:
        device = norms[0].device
        widest = max((norm.dtype for norm in norms), key=lambda dtype: dtype.itemsize)
        norms = [norm.to(device, widest) for norm in norms]
    return torch.stack(norms)


def _foreach_norm(tensors: list[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_norm(tensors, 2, dtype=torch.float32 if tensors[0].dtype in _HALF else None)
