"""The network has the shapes that it should have, and every weight learns."""

import torch

from {{ cookiecutter.package_name }} import model


def test_points_become_values() -> None:
    assert model.StarterModule()(torch.randn(5, 2)).shape == (5, 1)


def test_every_parameter_gets_a_gradient() -> None:
    module = model.StarterModule(width=16)
    module.loss_terms((torch.randn(32, 2), torch.randn(32, 1)))["task"].backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters()
    )
