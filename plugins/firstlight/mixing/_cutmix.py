"""CutMix: a box of another image, and as much of its target as the box covers."""

from __future__ import annotations

import torch
from torch import Tensor

from firstlight._require import require
from firstlight.mixing._mixing import Mixing


class CutMix(Mixing):
    """Paste a box of a partner image into each image; the targets are mixed by the area that was really pasted.

    The box has ``1 - share`` of the area, ``share ~ Beta(alpha, alpha)``, and the shape of the image; its center is
    uniform, so that it may reach over the border. What lies outside is cut off, and the share of the targets is
    counted from what is left.

    Shapes: inputs ``[N, *, H, W]``, targets ``[N]`` (indices) or ``[N, C]`` (probabilities), to inputs of the same
    shape and dtype (uint8 stays uint8) and probabilities ``[N, C]``; any N; nothing is changed in place. One box a
    batch, or with ``per_sample`` one an image.
    Unit: that of the inputs.
    Law: the targets' share of the partner is the fraction of pixels taken from it, exactly; ``alpha=0`` changes
    nothing; the same generator state gives the same mixture.
    Source: Yun et al. 2019, arXiv:1905.04899.

    Raises:
        ValueError: ``alpha`` below zero; inputs that are not images; targets that are neither indices nor
            probabilities, or out of range.

    >>> images, targets = torch.arange(3, dtype=torch.uint8).expand(8, 8, 3).permute(2, 0, 1), torch.tensor([0, 1, 2])
    >>> mixed, soft = CutMix(alpha=1.0)(images, targets, 3, torch.Generator().manual_seed(0))
    >>> mixed.dtype, torch.equal((mixed == 1).float().mean((1, 2)), soft[:, 1])
    (torch.uint8, True)
    """

    def _check(self, inputs: Tensor) -> None:
        require(inputs.ndim >= 3, "inputs", f"shape {tuple(inputs.shape)}", "images, [N, *, H, W]")

    def _mix(
        self, inputs: Tensor, partner: Tensor, share: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        side = (1.0 - share).sqrt()
        source = inputs.device if generator is None else generator.device
        center = torch.rand(2, len(share), device=source, generator=generator).to(inputs.device)
        height, width = inputs.shape[-2:]
        rows, in_rows = _interval(center[0], side, height)
        columns, in_columns = _interval(center[1], side, width)
        box = in_rows.unsqueeze(2) & in_columns.unsqueeze(1)
        box = box.reshape(len(share), *[1] * (inputs.ndim - 3), height, width)
        # Integers below 2**24 are exact in float32, and so is their count of pixels.
        return torch.where(box, inputs[partner], inputs), 1.0 - (rows * columns).to(share.dtype) / (height * width)


def _interval(center: Tensor, side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return how many of ``size`` places each interval covers, and which: ``[B]`` and ``[B, size]``."""
    length = (side * size).long()
    start = (center * size).long() - length // 2
    place = torch.arange(size, device=center.device)
    inside = (place >= start.unsqueeze(1)) & (place < (start + length).unsqueeze(1))
    return inside.sum(1), inside
