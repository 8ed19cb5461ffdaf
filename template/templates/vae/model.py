"""The two halves of the autoencoder: fully connected, wide enough for images of 8 by 8."""

from torch import Tensor, nn


def layers(inputs: int, width: int, outputs: int) -> list[nn.Module]:
    """Return three linear layers with SiLU between them: smooth, so that the bound is smooth in the code."""
    return [
        nn.Linear(inputs, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, outputs),
    ]


class Encoder(nn.Module):
    """Images ``[N, 1, 8, 8]`` to means and log-variances of the code ``[N, 2 * latent_dim]``.

    Args:
        latent_dim: Numbers in a code.
        width: Width of the hidden layers.
    """

    def __init__(self, *, latent_dim: int = 4, width: int = 256) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), *layers(64, width, 2 * latent_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Return means and, beside them, log-variances."""
        moments: Tensor = self.network(images)
        return moments


class Decoder(nn.Module):
    """Codes ``[N, latent_dim]`` to images ``[N, 1, 8, 8]``.

    Args:
        latent_dim: Numbers in a code.
        width: Width of the hidden layers.
    """

    def __init__(self, *, latent_dim: int = 4, width: int = 256) -> None:
        super().__init__()
        self.network = nn.Sequential(*layers(latent_dim, width, 64), nn.Unflatten(1, (1, 8, 8)))

    def forward(self, codes: Tensor) -> Tensor:
        """Return the mean of each pixel: no sigmoid, the likelihood is Gaussian."""
        images: Tensor = self.network(codes)
        return images
