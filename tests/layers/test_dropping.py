"""DropPath, SpatialDropout and GaussianNoise: what goes together, and how much."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from firstlight.layers import DropPath, GaussianNoise, SpatialDropout


@pytest.mark.parametrize("shape", [(2000,), (2000, 3), (2000, 2, 3, 4)])
def test_drop_path_keeps_or_drops_whole_samples(shape):
    output = DropPath(0.3)(torch.ones(shape)).reshape(2000, -1)
    assert torch.equal(output, output[:, :1].expand_as(output))
    torch.testing.assert_close(output.unique(), torch.tensor([0.0, 1 / 0.7]))
    dropped = float((output[:, 0] == 0).float().mean())
    assert dropped == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 2000))


@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((50, 20, 6), 1), ((50, 6, 20), 2), ((50, 6, 20), -1), ((50, 3, 4, 20), 3)]
)
def test_spatial_dropout_keeps_or_drops_whole_channels(shape, channel_dim):
    output = SpatialDropout(0.4, channel_dim)(torch.ones(shape)).movedim(channel_dim, 1).flatten(2)
    assert torch.equal(output, output[:, :, :1].expand_as(output))
    dropped = float((output[:, :, 0] == 0).float().mean())
    assert dropped == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 1000))


def test_spatial_dropout_on_images_is_torch_s():
    x = torch.randn(5, 7, 4, 4)
    torch.manual_seed(0)
    ours = SpatialDropout(0.4)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, nn.Dropout2d(0.4)(x))


def test_gaussian_noise_has_its_standard_deviation():
    x = torch.full((100, 400), 3.0, dtype=torch.float64)
    noise = GaussianNoise(0.2)(x) - x
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.005)
    assert torch.distributions.Normal(0, 0.2).cdf(noise).histc(10, 0, 1).min() > 3700  # normal: deciles of 4000


def test_gaussian_noise_passes_gradients_through():
    x = torch.randn(3, 4, requires_grad=True)
    GaussianNoise(5.0)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 4))
