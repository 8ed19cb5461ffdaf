"""Generator and discriminator: fully connected, wide enough for images of 8 by 8."""

from torch import Tensor, nn


class Generator(nn.Module):
    """Normal numbers ``[N, latent_dim]`` to images ``[N, 1, 8, 8]``.

    Args:
        latent_dim: Normal numbers for an image.
        width: Width of the hidden layers.
    """

    def __init__(self, *, latent_dim: int = 16, width: int = 256) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(latent_dim, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 64),
            nn.Sigmoid(),
            nn.Unflatten(1, (1, 8, 8)),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return images in 0..1, as the data are."""
        images: Tensor = self.network(z)
        return images


class Discriminator(nn.Module):
    """Images ``[N, 1, 8, 8]`` to one logit each. No BatchNorm: the R1 penalty looks at each image by itself.

    Args:
        width: Width of the hidden layers.
    """

    def __init__(self, *, width: int = 256) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: no sigmoid here, the loss has its own."""
        logits: Tensor = self.network(images)
        return logits
