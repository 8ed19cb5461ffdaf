"""Generator and discriminator fit together, and every weight learns."""

import torch

from {{ cookiecutter.package_name }} import model


def test_normal_numbers_become_images_and_these_logits() -> None:
    images = model.Generator(latent_dim=3)(torch.randn(5, 3))
    assert images.shape == (5, 1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    assert model.Discriminator()(images).shape == (5, 1)


def test_number_of_parameters() -> None:
    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def count(network: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    assert count(model.Generator()) == linear(16, 256) + linear(256, 256) + linear(256, 64)
    assert count(model.Discriminator()) == linear(64, 256) + linear(256, 256) + linear(256, 1)


def test_every_parameter_gets_a_gradient() -> None:
    generator, discriminator = model.Generator(), model.Discriminator()
    discriminator(generator(torch.randn(8, 16))).square().mean().backward()
    parameters = [*generator.parameters(), *discriminator.parameters()]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)


def test_the_logit_of_an_image_does_not_depend_on_the_others() -> None:
    images, discriminator = torch.rand(6, 1, 8, 8), model.Discriminator()  # the R1 penalty needs it
    torch.testing.assert_close(discriminator(images)[:1], discriminator(images[:1]))
