"""The network has the shapes and the size that it should have, and every weight learns."""

import torch

from {{ cookiecutter.package_name }} import model


def test_images_become_logits() -> None:
    assert model.DigitsCNN(num_classes=7)(torch.randn(3, 1, 8, 8)).shape == (3, 7)


def test_number_of_parameters() -> None:
    # By hand: three convolutions, two numbers a channel in BatchNorm, the linear layer with bias.
    convolutions = 9 * (1 * 16 + 16 * 16 + 16 * 32)
    expected = convolutions + 2 * (16 + 16 + 32) + (512 * 10 + 10)
    assert sum(parameter.numel() for parameter in model.DigitsCNN().parameters()) == expected


def test_every_parameter_gets_a_gradient() -> None:
    network = model.DigitsCNN()
    network(torch.randn(8, 1, 8, 8)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )
