"""Gradients of an optimizer and their norms: dense or sparse, whole or sharded, of any precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
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
