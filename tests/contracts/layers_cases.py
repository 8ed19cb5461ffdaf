"""Rows of layers that regularize: how each is built, at its rate and switched off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstlight.layers import (
    AlphaDropout,
    DropBlock2d,
    DropConnectLinear,
    Dropout,
    DropPath,
    GaussianNoise,
    SpatialDropout,
)


@dataclass(frozen=True)
class Row:
    """One layer: built from its strength, and the shape that it is fed."""

    build: Callable[[float], nn.Module]
    shape: tuple[int, ...]
    unbiased: bool = True  # the expectation of the training output is the evaluation output
    identity: bool = True  # evaluation changes nothing


ROWS: dict[str, Row] = {
    # Alpha dropout keeps mean 0 and variance 1 of a normal input, not each value's expectation.
    "AlphaDropout": Row(AlphaDropout, (4, 3), unbiased=False),
    # Fewer blocks reach a corner than the middle, so a map's mean keeps its expectation, not each value.
    "DropBlock2d": Row(lambda p: DropBlock2d(p, block_size=3), (4, 8, 6, 7), unbiased=False),
    "DropConnectLinear": Row(lambda p: DropConnectLinear(3, 5, p), (4, 3), identity=False),
    "DropPath": Row(DropPath, (4, 3)),
    "Dropout": Row(Dropout, (4, 3)),
    "GaussianNoise": Row(GaussianNoise, (4, 3)),
    "SpatialDropout": Row(SpatialDropout, (4, 3, 5)),
}


def inputs(row: Row) -> Tensor:
    return torch.randn(row.shape, generator=torch.Generator().manual_seed(1))


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: DropBlock2d(1.5), ValueError, r"p must be a probability in \[0, 1\]; got 1.5"),
    (lambda: DropBlock2d(0.1, block_size=0), ValueError, "block_size must be a whole number from 1 on; got 0"),
    (lambda: DropBlock2d(0.1, block_size=2.5), ValueError, "block_size must be a whole number from 1 on; got 2.5"),
    (lambda: DropBlock2d(0.1)(torch.ones(2, 3, 4)), ValueError, r"feature maps, \[N, C, H, W\]; got 'shape \(2, 3, 4"),
    (lambda: DropConnectLinear(2, 2, -0.1), ValueError, r"p must be a probability in \[0, 1\]; got -0.1"),
    (lambda: DropConnectLinear(2, 2, 0.5, num_samples=0), ValueError, "num_samples must be one or more; got 0"),
    (lambda: DropConnectLinear(2, 2, 0.5, mask_per="row"), ValueError, "mask_per must be 'sample' or 'batch'.*'row'"),
    (lambda: DropPath(float("nan")), ValueError, r"p must be a probability in \[0, 1\]; got nan"),
    (lambda: SpatialDropout(2.0), ValueError, r"p must be a probability in \[0, 1\]; got 2.0"),
    (lambda: SpatialDropout(0.1, channel_dim=0), ValueError, "channel_dim must be a dimension other than 0"),
    (lambda: SpatialDropout(0.1, channel_dim=3)(torch.ones(2, 3)), ValueError, "a dimension of the input.*got 3"),
    (lambda: SpatialDropout(0.1, channel_dim=-2)(torch.ones(2, 3)), ValueError, "other than the batch's; got -2"),
    (lambda: GaussianNoise(-1.0), ValueError, "std must be zero or more, and finite; got -1.0"),
    (
        lambda: GaussianNoise(0.1)(torch.ones(2, dtype=torch.long)),
        TypeError,
        "of a floating-point dtype; got torch.int",
    ),
]
