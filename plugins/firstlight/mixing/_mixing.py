"""What MixUp and CutMix share: a partner for each sample, a share drawn from Beta, mixed targets."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight._require import require


class Mixing(ABC):
    """Mixes each sample with another one of its batch; see the subclasses."""

    def __init__(self, alpha: float, *, per_sample: bool = False) -> None:
        require(0 <= alpha < float("inf"), "alpha", alpha, "zero or more, and finite")
        self.alpha = alpha
        self.per_sample = per_sample

    def __call__(
        self, inputs: Tensor, targets: Tensor, num_classes: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mixed inputs and soft targets ``[N, num_classes]``; see the class."""
        self._check(inputs)
        soft = soft_targets(targets, num_classes, len(inputs), dtype=_target_dtype(inputs))
        if self.alpha == 0 or len(inputs) == 0:
            return self._unmixed(inputs), soft
        source = inputs.device if generator is None else generator.device
        # Drawn where the generator lives and sent over: a copy to the device, never a wait for it.
        partner = torch.randperm(len(inputs), device=source, generator=generator).to(inputs.device)
        share = beta(self.alpha, len(inputs) if self.per_sample else 1, source, generator).to(inputs.device)
        mixed, share = self._mix(inputs, partner, share, generator)
        share = share.to(soft.dtype).unsqueeze(1)
        return mixed, share * soft + (1 - share) * soft[partner]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha}, per_sample={self.per_sample})"

    def _check(self, inputs: Tensor) -> None:
        require(inputs.ndim >= 1, "inputs", f"shape {tuple(inputs.shape)}", "a batch, samples along dimension 0")

    def _unmixed(self, inputs: Tensor) -> Tensor:
        return inputs

    @abstractmethod
    def _mix(
        self, inputs: Tensor, partner: Tensor, share: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed inputs and the share (``[N]`` or ``[1]``) that each sample really kept of itself."""


def beta(alpha: float, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw ``count`` values from Beta(alpha, alpha) with a generator, which ``torch.distributions`` does not take.

    A ratio of gammas, each as ``log Gamma(a) = log Gamma(a + 1) + log(U) / a``: the gammas themselves underflow
    to 0 / 0 for small ``alpha``.
    """
    shape = torch.full((2, count), alpha + 1.0, device=device)
    uniform = 1.0 - torch.rand(2, count, device=device, generator=generator)  # in (0, 1]
    gammas = torch._standard_gamma(shape, generator=generator).log() + uniform.log() / alpha
    return torch.sigmoid(gammas[0] - gammas[1])


def soft_targets(targets: Tensor, num_classes: int, num_samples: int, *, dtype: torch.dtype) -> Tensor:
    """Return targets as probabilities ``[N, C]``; those that are already are left as they are.

    Raises:
        ValueError: neither class indices ``[N]`` nor probabilities ``[N, num_classes]``; an index out of range (on
            the CPU: elsewhere looking would wait for the device, and torch's own assertion catches it).
    """
    require(num_classes >= 1, "num_classes", num_classes, "one or more")
    if targets.is_floating_point() and targets.shape == (num_samples, num_classes):
        return targets
    by_index = not targets.is_floating_point() and targets.dtype != torch.bool and targets.shape == (num_samples,)
    require(
        by_index,
        "targets",
        f"{targets.dtype} of shape {tuple(targets.shape)}",
        f"class indices of shape ({num_samples},) or probabilities of shape ({num_samples}, {num_classes})",
    )
    if targets.device.type == "cpu" and num_samples:
        low, high = int(targets.min()), int(targets.max())
        worst = low if low < 0 else high
        require(
            0 <= worst < num_classes, "targets", worst, f"class indices from 0 to num_classes - 1 = {num_classes - 1}"
        )
    return F.one_hot(targets.long(), num_classes).to(dtype)


def _target_dtype(inputs: Tensor) -> torch.dtype:
    """Float32, or float64 beside float64 inputs: a share rounded to 16 bits is not the share of the pixels."""
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32
