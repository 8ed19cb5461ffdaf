"""The two halves fit together, and every weight learns."""

import torch

from {{ cookiecutter.package_name }} import model


def test_images_become_codes_and_codes_images() -> None:
    moments = model.Encoder(latent_dim=3)(torch.rand(5, 1, 8, 8))
    assert moments.shape == (5, 6)
    assert model.Decoder(latent_dim=3)(moments[:, :3]).shape == (5, 1, 8, 8)


def test_number_of_parameters() -> None:
    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def count(network: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    assert count(model.Encoder()) == linear(64, 256) + linear(256, 256) + linear(256, 8)
    assert count(model.Decoder()) == linear(4, 256) + linear(256, 256) + linear(256, 64)


def test_every_parameter_gets_a_gradient() -> None:
    encoder, decoder = model.Encoder(), model.Decoder()
    mean, log_variance = encoder(torch.rand(8, 1, 8, 8)).chunk(2, dim=1)
    decoder(mean + log_variance.exp()).square().mean().backward()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
