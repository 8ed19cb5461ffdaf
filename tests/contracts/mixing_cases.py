"""Rows of mixings: how each is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from firstlight.mixing import CutMix, MixUp


@dataclass(frozen=True)
class Row:
    """One mixing: built from ``alpha`` and ``per_sample``; what it makes of uint8 images."""

    build: Callable[..., MixUp | CutMix]
    dtype_of_bytes: torch.dtype


ROWS: dict[str, Row] = {
    "CutMix": Row(CutMix, torch.uint8),
    "MixUp": Row(MixUp, torch.float32),
}


def _mix(mixing: MixUp | CutMix, targets: torch.Tensor, num_classes: int = 3, shape: tuple[int, ...] = (2, 1, 4, 4)):
    return lambda: mixing(torch.zeros(shape), targets, num_classes)


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: MixUp(-0.1), ValueError, "alpha must be zero or more, and finite; got -0.1"),
    (lambda: CutMix(float("inf")), ValueError, "alpha must be zero or more, and finite; got inf"),
    (_mix(MixUp(1.0), torch.tensor([0, 3])), ValueError, r"class indices from 0 to num_classes - 1 = 2; got 3"),
    (_mix(CutMix(1.0), torch.tensor([-1, 0])), ValueError, r"class indices from 0 to num_classes - 1 = 2; got -1"),
    (_mix(MixUp(1.0), torch.zeros(2)), ValueError, r"targets must be class indices of shape \(2,\) or.*\(2, 3\)"),
    (_mix(MixUp(1.0), torch.zeros(2, 4)), ValueError, r"probabilities of shape \(2, 3\); got 'torch.float32 of shape"),
    (_mix(CutMix(1.0), torch.tensor([0, 1, 2])), ValueError, r"of shape \(2,\).*got 'torch.int64 of shape \(3,\)'"),
    (_mix(CutMix(1.0), torch.tensor([0, 1]), shape=(2, 5)), ValueError, r"inputs must be images.*shape \(2, 5\)"),
    (_mix(MixUp(1.0), torch.tensor([0, 1]), shape=()), ValueError, "inputs must be a batch"),
    (_mix(MixUp(1.0), torch.tensor([0, 1]), num_classes=0), ValueError, "num_classes must be one or more; got 0"),
]
