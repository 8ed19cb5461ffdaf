"""The shares of MixUp and CutMix: their distribution, and the box that realizes them."""

from __future__ import annotations

import pytest
import torch

from firstlight.mixing import CutMix, MixUp
from firstlight.mixing._mixing import beta


def uniform_by_beta(draws: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the distribution function of Beta(alpha, alpha) at the draws, by mpmath on a grid."""
    from mpmath import betainc

    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    values = torch.tensor([float(betainc(alpha, alpha, 0, float(x), regularized=True)) for x in grid])
    return values[(draws.double() * 200).round().long()]


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 2.0, 8.0])
def test_the_share_is_beta(alpha):
    draws = beta(alpha, 40000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert ((draws >= 0) & (draws <= 1)).all()
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    # Kolmogorov and Smirnov's distance on the grid: 1.95 / sqrt(n) is passed once in a thousand
    grid = torch.linspace(0.05, 0.95, 19)
    seen = torch.stack([(draws <= x).double().mean() for x in grid])
    expected = uniform_by_beta(grid, alpha)
    assert float((seen - expected).abs().max()) < 1.95 / 200


def test_tiny_alpha_does_not_underflow():
    """A ratio of two gammas is 0 / 0 here: draws are 0 or 1, half each, never one half."""
    draws = beta(1e-3, 4000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert draws.isfinite().all()
    assert float(((draws < 1e-6) | (draws > 1 - 1e-6)).float().mean()) > 0.97
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.04)


def test_every_pair_can_meet():
    """Partners are a permutation, not the next one around."""
    inputs, targets = torch.zeros(4, 1), torch.arange(4)
    met = torch.zeros(4, 4)
    for seed in range(200):
        met += MixUp(1.0)(inputs, targets, 4, torch.Generator().manual_seed(seed))[1] > 0
    assert (met > 20).all()


def test_mixup_of_one_image_and_another_by_hand():
    inputs, targets = torch.tensor([[1.0, 2.0], [5.0, -2.0]]), torch.tensor([0, 1])
    for seed in range(10):
        mixed, soft = MixUp(0.7, per_sample=True)(inputs, targets, 2, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(mixed, soft @ inputs)


def pasted(side: int, share_seed: int, per_sample: bool = False):
    images = torch.arange(6.0).reshape(-1, 1, 1).expand(6, side, side)
    mixed, soft = CutMix(1.0, per_sample=per_sample)(
        images, torch.arange(6), 6, torch.Generator().manual_seed(share_seed)
    )
    return images, mixed, soft


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_box_is_one_rectangle_and_the_share_is_what_it_leaves(per_sample):
    seen = 0
    for seed in range(40):
        images, mixed, soft = pasted(16, seed, per_sample)
        for image, original, target, index in zip(mixed, images, soft, range(6), strict=True):
            foreign = image != original
            assert float(target[index]) == 1 - float(foreign.float().mean())  # exactly, after clipping at the border
            if foreign.any():
                rows, columns = foreign.any(1).nonzero().flatten(), foreign.any(0).nonzero().flatten()
                box = foreign[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                assert box.all()
                seen += 1
    assert seen > 100


def test_the_box_has_the_area_of_the_share_where_nothing_is_cut_off():
    """side = size sqrt(1 - share): a share of .75 leaves a box of half the side (composer's was inverted)."""
    from firstlight.mixing._cutmix import _interval

    center, side = torch.tensor([0.5, 0.5, 0.0]), (1 - torch.tensor([0.75, 0.0, 0.75])).sqrt()
    count, inside = _interval(center, side, 64)
    assert count.tolist() == [32, 64, 16]  # the last one reaches over the border: half of it is left
    assert inside[0].nonzero().flatten().tolist() == list(range(16, 48))


def test_videos_share_one_box_over_time():
    clips = torch.arange(4.0).reshape(-1, 1, 1, 1, 1).expand(4, 3, 5, 8, 8)
    mixed, _ = CutMix(1.0)(clips, torch.arange(4), 4, torch.Generator().manual_seed(1))
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
