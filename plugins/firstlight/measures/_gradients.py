"""Readings of gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def relative_norms(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of each gradient over the norm of its weight, where the weight is not zero.

    >>> relative_norms({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 2.5])})
    {'w': 0.5}
    """
    found = {}
    for name, gradient in gradients.items():
        size = float(torch.linalg.vector_norm(weights[name].detach().double()))
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        norm = float(torch.linalg.vector_norm(values.detach().double()))
        if size > 0:
            found[name] = norm / size
    return found
