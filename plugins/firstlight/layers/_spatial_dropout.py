"""SpatialDropout: whole channels at a time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from firstlight._require import require


class SpatialDropout(nn.Module):
    """Zero whole channels of a sample with probability ``p``, and scale what is kept by ``1 / (1 - p)``.

    Neighbors in space or time carry the same information, so dropping single values there drops little. Says where
    the channels are, where :class:`torch.nn.Dropout2d` guesses by the number of dimensions. Off in evaluation.

    Shapes: ``[N, C, *]`` to the same; ``[N, L, C]`` with ``channel_dim=2`` or ``-1``. Unit: that of the input.
    Law: the expectation is the input; a channel is kept or dropped as one; on ``[N, C, H, W]`` the distribution of
    :class:`torch.nn.Dropout2d`.
    Source: Tompson et al. 2015, arXiv:1411.4280.

    Raises:
        ValueError: ``p`` outside [0, 1]; a channel dimension that is the batch's or that the input lacks.

    >>> import torch
    >>> dropped = SpatialDropout(0.5, channel_dim=-1)(torch.ones(1, 5, 8))  # [N, L, C]
    >>> torch.equal(dropped, dropped[:, :1].expand(1, 5, 8))  # the same channels at all five places
    True
    """

    def __init__(self, p: float = 0.5, channel_dim: int = 1) -> None:
        super().__init__()
        require(0 <= p <= 1, "p", p, "a probability in [0, 1]")
        require(channel_dim != 0, "channel_dim", channel_dim, "a dimension other than 0, which is the batch's")
        self.p = p
        self.channel_dim = channel_dim

    def forward(self, inputs: Tensor) -> Tensor:
        dim = self.channel_dim + inputs.ndim if self.channel_dim < 0 else self.channel_dim
        require(
            0 < dim < inputs.ndim,
            "channel_dim",
            self.channel_dim,
            f"a dimension of the inputs, of shape {tuple(inputs.shape)}, other than the batch's",
        )
        if not self.training or self.p == 0:
            return inputs
        shape = [size if index in (0, dim) else 1 for index, size in enumerate(inputs.shape)]
        return inputs * F.dropout(inputs.new_ones(shape), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, channel_dim={self.channel_dim}"
