"""DropBlock2d: the stated rate is the realized one, in blocks."""

from __future__ import annotations

import math

import pytest
import torch

from firstlight.layers import DropBlock2d
from firstlight.layers._drop_block import block_rate


@pytest.mark.parametrize(
    ("size", "block", "p"),
    # Where timm 1.0.31 realizes .135, .208, .931, 1.00, .153; torchvision 0.28 .094, .092, .108, .487, an error.
    [
        (28, 7, 0.1),
        (14, 7, 0.1),
        (7, 7, 0.1),
        (5, 5, 0.5),
        (10, 4, 0.1),
        (6, 2, 0.3),
        (9, 7, 0.9),
        (3, 7, 0.2),
        (8, 1, 0.4),
    ],
)
def test_the_stated_rate_is_realized(size, block, p):
    maps = 20000 if size < 10 else 4000
    dropped = (DropBlock2d(p, block)(torch.ones(maps // 20, 20, size, size)) == 0).float().mean((2, 3)).flatten()
    error = float(dropped.std()) / math.sqrt(maps)
    assert float(dropped.mean()) == pytest.approx(p, abs=max(4 * error, 1e-6))
    assert error < 0.005, "enough maps to tell"


def test_maps_that_are_not_square():
    dropped = DropBlock2d(0.2, 7)(torch.ones(400, 20, 3, 11)) == 0
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(("height", "width", "block"), [(28, 28, 7), (10, 10, 4), (5, 9, 3)])
def test_the_rate_tends_to_that_of_the_paper(height, width, block):
    p = 1e-6
    paper = p * height * width / (block**2 * (height - block + 1) * (width - block + 1))
    assert block_rate(p, block, height, width) == pytest.approx(paper, rel=1e-3)


def test_the_rate_against_every_mask_of_a_small_map():
    """Blocks of 2 on a map of 3 x 3: four places, sixteen patterns."""
    rate = block_rate(0.4, 2, 3, 3)
    expected = 0.0
    for pattern in range(16):
        mask = torch.zeros(3, 3, dtype=torch.float64)
        probability = 1.0
        for place in range(4):
            drawn = pattern >> place & 1
            probability *= rate if drawn else 1 - rate
            if drawn:
                mask[place // 2 : place // 2 + 2, place % 2 : place % 2 + 2] = 1
        expected += probability * float(mask.mean())
    assert expected == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize("block", [2, 3, 4])
def test_what_is_dropped_are_whole_blocks_inside_the_map(block):
    """Every zero lies in a block of zeros: opening the mask by a square changes nothing."""
    zeros = (DropBlock2d(0.3, block)(torch.ones(50, 4, 9, 10)) == 0).float()
    inner = torch.nn.functional.avg_pool2d(zeros, block, stride=1) > 1 - 1e-6  # corners of blocks of zeros
    back = torch.zeros_like(zeros, dtype=torch.bool)
    for row in range(block):
        for column in range(block):
            back[:, :, row : row + inner.shape[2], column : column + inner.shape[3]] |= inner
    assert torch.equal(back, zeros.bool())


def test_the_places_of_blocks_are_symmetric():
    """Even blocks too: no side of the map is dropped more than its mirror image."""
    rate = (DropBlock2d(0.3, 4)(torch.ones(1000, 20, 8, 8)) == 0).float().mean((0, 1))
    torch.testing.assert_close(rate, rate.flip(0), atol=0.02, rtol=0)
    torch.testing.assert_close(rate, rate.flip(1), atol=0.02, rtol=0)


def test_channels_and_samples_have_masks_of_their_own():
    masks = (DropBlock2d(0.5, 3)(torch.ones(4, 5, 8, 8)) == 0).flatten(2).flatten(0, 1)
    assert len(masks.unique(dim=0)) > 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_mean_stays_in_every_dtype(dtype):
    """torchvision's mean is 0 in float16 from 65504 kept values on."""
    output = DropBlock2d(0.1, 7)(torch.ones(64, 64, 32, 32, dtype=dtype))
    assert float(output.float().mean()) == pytest.approx(1.0, abs=4e-3)  # bfloat16 rounds the scale itself to 0.4 %


def test_the_scale_is_count_over_kept():
    output = DropBlock2d(0.4, 2)(torch.ones(3, 2, 6, 6))
    kept = output[output > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, output.numel() / len(kept)))
    assert float(output.mean()) == pytest.approx(1.0, rel=1e-6)
