"""The network has the shapes and the size that it should have, and every weight learns."""

import torch

from {{ cookiecutter.package_name }} import model


def test_rows_become_numbers() -> None:
    assert model.TableNet(columns=7)(torch.randn(3, 7)).shape == (3,)


def test_number_of_parameters() -> None:
    # By hand: weights and biases of the linear model, the two hidden layers and the head.
    expected = (10 + 1) + (10 * 64 + 64) + (64 * 64 + 64) + (64 + 1)
    assert sum(parameter.numel() for parameter in model.TableNet().parameters()) == expected


def test_every_parameter_gets_a_gradient() -> None:
    network = model.TableNet()
    network(torch.randn(64, 10)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )


def test_noise_is_for_training_only() -> None:
    network, rows = model.TableNet(noise=1.0, dropout=0.0), torch.randn(5, 10)
    assert not torch.equal(network(rows), network(rows))
    network.eval()
    assert torch.equal(network(rows), network(rows))


def test_without_a_head_it_is_the_linear_model() -> None:
    network, rows = model.TableNet().eval(), torch.randn(5, 10)
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    assert torch.allclose(network(rows), network.linear(rows).squeeze(1))
