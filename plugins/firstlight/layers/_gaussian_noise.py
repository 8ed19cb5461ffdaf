"""GaussianNoise: activations with noise on top."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firstlight._require import require


class GaussianNoise(nn.Module):
    """Add noise from N(0, std**2) to each value in training. Off in evaluation.

    Shapes: ``[*]`` to the same. Unit: that of the input. Law: the expectation is the input, the variance grows by
    ``std**2``; the gradient is that of the identity.
    Source: Bishop 1995 (noise on inputs as a Tikhonov regularizer).

    Raises:
        ValueError: ``std`` below zero or not finite. TypeError: an input of integers.

    >>> noise = GaussianNoise(0.1).eval()
    >>> noise(torch.ones(2))
    tensor([1., 1.])
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        require(0 <= std < float("inf"), "std", std, "zero or more, and finite")
        self.std = std

    def forward(self, inputs: Tensor) -> Tensor:
        require(inputs.is_floating_point(), "input", inputs.dtype, "of a floating-point dtype", error=TypeError)
        if not self.training or self.std == 0:
            return inputs
        return inputs + self.std * torch.randn_like(inputs)

    def extra_repr(self) -> str:
        return f"std={self.std}"
