"""GradientListener: who wants to hear what a GradientMonitor reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class GradientListener(Protocol):
    """Hears a ``GradientMonitor``. Tensors are the monitor's own, on their device: to be kept, not changed."""

    def hear_norms(self, optimizer: Optimizer, owners: Sequence[nn.Parameter], norms: Tensor, total: Tensor) -> None:
        """Take the norms of one step before clipping: of each parameter that has a gradient, and of all."""

    def hear_count(self, optimizer: Optimizer, count: Tensor) -> None:
        """Take the numbers of steps, of those clipped and of those not finite, since the last call."""

    def hear_values(self, values: Mapping[str, Tensor]) -> None:
        """Take what the monitor logs."""
