"""DropBlock2d: contiguous squares of a feature map."""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor, nn

from firstlight._require import require


class DropBlock2d(nn.Module):
    """Zero square blocks of each channel so that a fraction ``p`` of the values is dropped; scale up what is kept.

    Blocks lie wholly inside the map, at places drawn for each channel of each sample. ``block_size`` may be even, and
    is cut down to the shorter side of a small map. What is kept is scaled by count / kept over the batch, in float32.
    Off in evaluation.

    Shapes: ``[N, C, H, W]`` to the same. Unit: that of the input.
    Law: the expected fraction of zeros is ``p``, on every map. The paper's rate for block places,
    ``p H W / (k**2 (H - k + 1)(W - k + 1))``, counts overlapping blocks twice and so drops less than it says; here the
    rate is solved for (:func:`block_rate`), and tends to the paper's as ``p`` tends to 0.
    Source: Ghiasi et al. 2018, arXiv:1810.12890.

    Raises:
        ValueError: ``p`` outside [0, 1], ``block_size`` below 1, an input that is not 4-dimensional.

    >>> dropped = DropBlock2d(0.25, block_size=7)(torch.ones(400, 10, 7, 7))  # one block covers all of such a map
    >>> kept = (dropped > 0).flatten(2).float().mean(2)
    >>> sorted(set(kept.flatten().tolist())), 0.7 < kept.mean() < 0.8
    ([0.0, 1.0], tensor(True))
    """

    def __init__(self, p: float = 0.1, block_size: int = 7) -> None:
        super().__init__()
        require(0 <= p <= 1, "p", p, "a probability in [0, 1]")
        require(isinstance(block_size, int) and block_size >= 1, "block_size", block_size, "a whole number from 1 on")
        self.p = p
        self.block_size = block_size

    def forward(self, inputs: Tensor) -> Tensor:
        require(inputs.ndim == 4, "input", f"shape {tuple(inputs.shape)}", "feature maps, [N, C, H, W]")
        if not self.training or self.p == 0 or inputs.numel() == 0:
            return inputs
        num_samples, channels, *size = inputs.shape
        height, width = map(operator.index, size)  # numbers, also where torch.compile would keep symbols
        block = min(self.block_size, height, width)
        places = (num_samples, channels, height - block + 1, width - block + 1)
        corners = torch.rand(places, device=inputs.device) < block_rate(self.p, block, height, width)
        # How many of the drawn blocks reach each place; products with bands are 30 times faster than max_pool2d here.
        reached = _band(height, block, inputs.device) @ corners.float() @ _band(width, block, inputs.device).T
        kept = (reached == 0).float()
        # In float32: a count of values does not fit in 16 bits. Nothing kept: nothing to scale.
        scale = kept.numel() / kept.sum().clamp(min=1.0)
        mask: Tensor = (kept * scale).to(inputs.dtype)
        return inputs * mask

    def extra_repr(self) -> str:
        return f"p={self.p}, block_size={self.block_size}"


def _band(size: int, block_size: int, device: torch.device) -> Tensor:
    """Return ``[size, places]``, 1 where a block that starts at a place reaches."""
    distance = torch.arange(size, device=device).unsqueeze(1) - torch.arange(size - block_size + 1, device=device)
    return ((distance >= 0) & (distance < block_size)).float()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def block_rate(p: float, block_size: int, height: int, width: int) -> float:
    """Return the probability of a block at each place that drops a fraction ``p`` of the map, overlaps counted.

    A value that n blocks reach is dropped with probability ``1 - (1 - rate)**n``; the mean of that over the map is
    ``p``.
    """
    return _solved_rate(p, block_size, height, width)


@functools.lru_cache(maxsize=1024)
def _solved_rate(p: float, block_size: int, height: int, width: int) -> float:
    if p in (0.0, 1.0):
        return p
    reach: dict[int, int] = {}  # how many blocks reach a value: of how many values that is true
    for rows in _reach(height, block_size):
        for columns in _reach(width, block_size):
            reach[rows * columns] = reach.get(rows * columns, 0) + 1

    def dropped(rate: float) -> float:
        return sum(count * (1 - (1 - rate) ** blocks) for blocks, count in reach.items()) / (height * width)

    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:  # until no number lies between them
        low, high = (middle, high) if dropped(middle) < p else (low, middle)
    return middle


def _reach(size: int, block_size: int) -> list[int]:
    """For each place of a line, how many of the blocks that fit on the line reach it."""
    last = size - block_size
    return [min(place, last) - max(0, place - block_size + 1) + 1 for place in range(size)]
