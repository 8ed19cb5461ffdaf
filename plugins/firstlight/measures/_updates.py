"""Readings of optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def update_ratios(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of each tensor's change over its norm, for tensors that do not start near zero.

    Tensors whose root mean square is below 1e-3 are left out: biases that start at zero have no ratio.

    >>> update_ratios({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 4.5])})
    {'w': 0.1}
    """
    found = {}
    for name, old in before.items():
        size = float(torch.linalg.vector_norm(old.double()))
        if size > 1e-3 * old.numel() ** 0.5:
            found[name] = float(torch.linalg.vector_norm(after[name].double() - old.double())) / size
    return found
