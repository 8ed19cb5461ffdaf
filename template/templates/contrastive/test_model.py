"""The network has the shapes and the size that it should have, every weight learns, and views are views."""

import pytest
import torch
from torch.nn import functional as F

from {{ cookiecutter.package_name }} import model


def test_images_become_representations_and_these_embeddings() -> None:
    representations = model.Encoder(features=12)(torch.randn(3, 1, 8, 8))
    assert representations.shape == (3, 12)
    assert model.Projection(features=12, outputs=5)(representations).shape == (3, 5)


def test_number_of_parameters() -> None:
    # By hand: two convolutions, two numbers a channel in BatchNorm, the linear layer with bias.
    expected = 9 * (1 * 16 + 16 * 32) + 2 * (16 + 32) + (512 * 32 + 32)
    assert sum(parameter.numel() for parameter in model.Encoder().parameters()) == expected


def test_every_parameter_gets_a_gradient() -> None:
    network = torch.nn.Sequential(model.Encoder(), model.Projection())
    network(torch.randn(8, 1, 8, 8)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )


def test_without_change_a_view_is_the_image() -> None:
    images = torch.rand(5, 1, 8, 8)
    still = model.Views(turn=0, zoom=0, move=0, noise=0)
    torch.testing.assert_close(still(images), images, atol=1e-5, rtol=0)


def test_a_view_is_turned_by_its_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(1, 1, 8, 8)
    quarter = model.Views(turn=torch.pi / 2, zoom=0, move=0, noise=0)
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.ones(size))
    torch.testing.assert_close(quarter(images), images.rot90(1, dims=(2, 3)), atol=1e-4, rtol=0)


def test_each_image_has_a_view_of_its_own() -> None:
    images = torch.rand(1, 1, 8, 8).expand(6, 1, 8, 8)
    first, second = model.Views()(images), model.Views()(images)
    assert F.mse_loss(first, second) > 1e-3
    assert F.mse_loss(first[0], first[1]) > 1e-3
