"""Draw values of a stated standard deviation, in full precision, on the generator's device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from firstlight.initializers._fans import Slot
from firstlight.initializers._orthogonal import orthogonal_

# Standard deviation of N(0, 1) cut at -2 and 2: without it the variance falls 23 % short.
_CUT = 2.0
_CUT_STD = 0.8796256610342398


def draw(like: Tensor, std: float, distribution: str, generator: torch.Generator | None) -> Tensor:
    """Return new values in the shape of ``like``; half precision is drawn in single, so the draw is the same."""
    values = blank(like, generator)
    if distribution == "uniform":
        bound = math.sqrt(3.0) * std
        return values.uniform_(-bound, bound, generator=generator)
    if distribution == "normal":
        return values.normal_(0.0, std, generator=generator)
    tail = math.erf(_CUT / math.sqrt(2.0))
    values.uniform_(-tail, tail, generator=generator)
    return values.erfinv_().mul_(math.sqrt(2.0)).clamp_(-_CUT, _CUT).mul_(std / _CUT_STD)


def draw_orthogonal(like: Tensor, slot: Slot, gain: float, generator: torch.Generator | None) -> Tensor:
    """Return new values whose blocks are each orthonormal times ``gain``."""
    values = blank(like, generator)
    for block in values.chunk(slot.blocks):
        orthogonal_(block, gain=gain, generator=generator)
    return values


def blank(like: Tensor, generator: torch.Generator | None) -> Tensor:
    dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
    device = like.device if generator is None else generator.device
    return torch.empty(like.shape, dtype=dtype, device=device)


def measured_std(weight: Tensor) -> float:
    """Return the standard deviation of what is there, computed in single precision or better."""
    if weight.numel() < 2:
        return 0.0
    return float((weight if weight.dtype.itemsize >= 4 else weight.float()).std(correction=0))
