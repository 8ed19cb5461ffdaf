"""DropPath: stochastic depth, a residual branch left out sample by sample."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from firstlight._require import require


class DropPath(nn.Module):
    """Zero the whole input of a sample with probability ``p``, and scale what is kept by ``1 / (1 - p)``.

    Stands at the end of a residual branch, before it is added: ``x + drop_path(branch(x))``. Off in evaluation.

    Shapes: ``[N, *]`` to the same. Unit: that of the input.
    Law: the expectation is the input; each sample is kept or dropped as one; ``p=1`` gives zeros.
    Source: Huang et al. 2016, arXiv:1603.09382.

    Raises:
        ValueError: ``p`` outside [0, 1].

    >>> import torch
    >>> sorted(set(DropPath(0.5)(torch.ones(64, 3)).flatten().tolist()))
    [0.0, 2.0]
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        require(0 <= p <= 1, "p", p, "a probability in [0, 1]")
        self.p = p

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return inputs
        return inputs * F.dropout(inputs.new_ones(len(inputs), *[1] * (inputs.ndim - 1)), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
