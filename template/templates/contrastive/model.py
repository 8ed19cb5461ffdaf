"""What is trained: an encoder, its projection, and the two random views of an image that are to agree."""

import torch
from firstlight.layers import GaussianNoise
from torch import Tensor, nn
from torch.nn import functional as F


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    """Return convolution, BatchNorm and ReLU. BatchNorm brings the bias, so the convolution has none."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class Encoder(nn.Module):
    """Images ``[N, 1, 8, 8]`` to representations ``[N, features]``: what is kept after training.

    Args:
        channels: Width of the first convolution; the second and third have twice as many.
        features: Numbers in a representation.
    """

    def __init__(self, *, channels: int = 16, features: int = 32) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *conv_block(1, channels),
            *conv_block(channels, 2 * channels, stride=2),
            nn.Flatten(),
            nn.Linear(2 * channels * 4 * 4, features),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return representations."""
        representations: Tensor = self.network(images)
        return representations


class Projection(nn.Module):
    """Representations ``[N, features]`` to embeddings ``[N, outputs]``, which only the loss sees.

    Args:
        features: Numbers in a representation.
        outputs: Numbers in an embedding.
    """

    def __init__(self, *, features: int = 32, outputs: int = 32) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.ReLU(), nn.Linear(features, features), nn.ReLU(), nn.Linear(features, outputs)
        )

    def forward(self, representations: Tensor) -> Tensor:
        """Return embeddings; the loss puts them on the sphere."""
        embeddings: Tensor = self.network(representations)
        return embeddings


class Views(nn.Module):
    """A view of each image: turned, moved, in another size, with noise; still the same digit.

    Args:
        turn: Standard deviation of the angle, in radians.
        zoom: Standard deviation of the size.
        move: Standard deviation of the place, in halves of the image.
        noise: Standard deviation of the noise on each pixel.
    """

    def __init__(
        self, *, turn: float = 0.3, zoom: float = 0.15, move: float = 0.15, noise: float = 0.1
    ) -> None:
        super().__init__()
        self.turn = turn
        self.zoom = zoom
        self.move = move
        self.noise = GaussianNoise(noise)

    def forward(self, images: Tensor) -> Tensor:
        """Return one view of each image, on the images' device."""
        num = len(images)
        normal = torch.randn(num, 4, device=images.device)
        angle, size = self.turn * normal[:, 0], 1 + self.zoom * normal[:, 1]
        cos, sin = size * angle.cos(), size * angle.sin()
        place = self.move * normal[:, 2:]
        rows = torch.stack([cos, -sin, place[:, 0], sin, cos, place[:, 1]], dim=1).view(num, 2, 3)
        grid = F.affine_grid(rows, list(images.shape), align_corners=False)
        view: Tensor = self.noise(F.grid_sample(images, grid, align_corners=False))
        return view
