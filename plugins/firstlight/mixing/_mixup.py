"""MixUp: convex combinations of samples and of their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from firstlight.mixing._mixing import Mixing


class MixUp(Mixing):
    """``share * x + (1 - share) * x[partner]``, the same for the targets; ``share ~ Beta(alpha, alpha)``.

    Shapes: inputs ``[N, *]``, targets ``[N]`` (indices) or ``[N, C]`` (probabilities), to inputs ``[N, *]`` and
    probabilities ``[N, C]``; any N. Integer inputs (uint8 images) come back as float32, on their own scale; nothing
    is changed in place. One share a batch, or with ``per_sample`` one a sample.
    Unit: that of the inputs.
    Law: the mean over the batch stays that of the targets within one share; ``alpha=0`` changes nothing; the same
    generator state gives the same mixture, and no other generator is touched.
    Source: Zhang et al. 2018, arXiv:1710.09412.

    Raises:
        ValueError: ``alpha`` below zero; targets that are neither indices nor probabilities, or out of range.

    >>> inputs, targets = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 2])
    >>> mixed, soft = MixUp(alpha=1.0)(inputs, targets, 3, torch.Generator().manual_seed(0))
    >>> torch.allclose(mixed, soft @ inputs), soft.sum(1)
    (True, tensor([1., 1., 1.]))
    """

    def _unmixed(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.is_floating_point() else inputs.float()

    def _mix(
        self, inputs: Tensor, partner: Tensor, share: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        kept = share.reshape(-1, *[1] * (inputs.ndim - 1))
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        mixed = torch.lerp(wide[partner], wide, kept.to(wide.dtype))
        return (mixed.to(inputs.dtype) if inputs.is_floating_point() else mixed), share
