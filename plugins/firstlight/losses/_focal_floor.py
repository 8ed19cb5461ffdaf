"""The floor of the focal loss on soft targets: it has no formula, but its conditions can be solved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lowest_focal(weight: Tensor, gamma: float) -> Tensor:
    """Return ``min over distributions p of sum_c weight_c (1 - p_c)^gamma (-log p_c)`` for each row of ``[R, C]``.

    The sum is convex in p. At its minimum ``weight_c f'(p_c)`` is the same for all classes that weigh something
    (Lagrange), and the p_c add up to 1: a bisection for the common slope, and a table to read p_c off it. What the
    table gets wrong enters only squared, since the p_c add up to 1 all the same.
    """
    rows = weight.double().sort(1, descending=True).values  # the order of classes does not matter: many rows are equal
    if not len(rows):
        return rows.sum(1)
    rows, which = torch.unique(rows, dim=0, return_inverse=True)
    rows = rows[:, : int((rows > 0).sum(1).max())]  # classes that no row weighs get no probability
    logit, steepness = _table(gamma, rows.device)
    log_weight = rows.log()
    low, high = rows.new_full((len(rows), 1), -60.0), rows.new_full((len(rows), 1), 60.0)
    for _ in range(50):
        slope = (low + high) / 2
        too_much = torch.sigmoid(_read(logit, steepness, slope - log_weight)).sum(1, keepdim=True) > 1
        low, high = torch.where(too_much, slope, low), torch.where(too_much, high, slope)
    p = torch.sigmoid(_read(logit, steepness, (low + high) / 2 - log_weight))
    return torch.where(rows > 0, rows * (1 - p) ** gamma * -p.log(), 0.0).sum(1)[which]


def _table(gamma: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return logit(p) and the log of ``-f'(p)``, which rises as p falls: both in that order."""
    logit = torch.linspace(40.0, -80.0, 2**14, dtype=torch.float64, device=device)
    log_p, log_miss = F.logsigmoid(logit), F.logsigmoid(-logit)
    # -f'(p) = (1 - p)^(gamma - 1) (gamma (-log p) + (1 - p) / p)
    return logit, (gamma - 1) * log_miss + torch.log(torch.exp(log_miss - log_p) - gamma * log_p)


def _read(logit: Tensor, steepness: Tensor, wanted: Tensor) -> Tensor:
    """Return the logit at which the loss is as steep as wanted, on a line between two entries of the table."""
    after = torch.searchsorted(steepness, wanted).clamp(1, len(steepness) - 1)
    before = after - 1
    share = (wanted - steepness[before]) / (steepness[after] - steepness[before])
    # Near p = 1 the table may hold equal entries: 0 / 0 there is as good as either of the two.
    return torch.lerp(logit[before], logit[after], share.nan_to_num(0.0).clamp(0, 1))
