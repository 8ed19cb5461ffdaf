"""The floor of the focal loss on soft targets: it has no formula, but its conditions can be solved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lowest_focal(weight: Tensor, gamma: float) -> Tensor:
    """Return ``min over distributions p of sum_c weight_c (1 - p_c)^gamma (-log p_c)`` for each row of ``[R, C]``.

    The sum is convex in p. At its minimum ``weight_c f'(p_c)`` is the same for all classes that weigh something
    (Lagrange), and the p_c add up to 1: one bisection for the common slope, one inside it for each p_c.
    """
    rows, which = torch.unique(weight.double().sort(1, descending=True).values, dim=0, return_inverse=True)
    rows = rows[:, : int((rows > 0).sum(1).max()) if rows.numel() else 0]  # classes of no weight get no probability
    low, high = rows.new_full((len(rows), 1), -60.0), rows.new_full((len(rows), 1), 60.0)
    for _ in range(60):
        slope = (low + high) / 2
        too_much = torch.sigmoid(_logit_at(rows.log(), slope, gamma)).sum(1, keepdim=True) > 1
        low, high = torch.where(too_much, slope, low), torch.where(too_much, high, slope)
    logit = _logit_at(rows.log(), (low + high) / 2, gamma)
    losses = F.softplus(-logit) * torch.exp(-gamma * F.softplus(logit))
    alone = (rows > 0).sum(1) < 2  # one class can have it all
    floors = torch.where(alone, 0.0, (rows * losses).sum(1))
    return floors[which]


def _logit_at(log_weight: Tensor, log_slope: Tensor, gamma: float) -> Tensor:
    """Return logit(p) of each class where the loss falls with p at the given slope."""
    low, high = torch.full_like(log_weight, -80.0), torch.full_like(log_weight, 40.0)
    for _ in range(50):
        logit = (low + high) / 2
        log_p, log_miss = F.logsigmoid(logit), F.logsigmoid(-logit)
        # -f'(p) = (1 - p)^(gamma - 1) (gamma (-log p) + (1 - p) / p), which falls as p grows
        steep = log_weight + (gamma - 1) * log_miss + torch.log(torch.exp(log_miss - log_p) - gamma * log_p)
        too_steep = steep > log_slope
        low, high = torch.where(too_steep, logit, low), torch.where(too_steep, high, logit)
    return (low + high) / 2
