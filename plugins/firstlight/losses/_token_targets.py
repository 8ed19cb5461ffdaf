"""Targets that are token numbers: which count, and whether they are within the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from firstlight._require import require


def check_token_options(label_smoothing: float, z_loss: float) -> None:
    """Raise ``ValueError`` unless both are in their ranges."""
    require(0.0 <= label_smoothing <= 1.0, "label_smoothing", label_smoothing, "between 0 and 1")
    require(z_loss >= 0.0, "z_loss", z_loss, "zero or above (PaLM: 1e-4)")


def valid_tokens(target: Tensor, vocabulary: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return which targets count, and the targets with 0 in place of the others.

    Values are looked at on the CPU only: elsewhere that would make the host wait for the device, and the device's own
    assertion catches them.
    """
    require(not (target.is_floating_point() or target.is_complex()), "target", target.dtype, "class indices (integers)")
    valid = target != ignore_index
    safe = target.where(valid, 0).long()
    if target.device.type == "cpu" and target.numel() and not torch.compiler.is_compiling():
        low, high = int(safe.min()), int(safe.max())
        require(
            low >= 0 and high < vocabulary,
            "target",
            low if low < 0 else high,
            f"between 0 and {vocabulary - 1}, or ignore_index={ignore_index}",
        )
    return valid, safe
