"""A small convolutional network in the recommended order: convolution, BatchNorm, ReLU."""

from torch import Tensor, nn


def conv_block(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Return convolution, BatchNorm and ReLU. BatchNorm brings the bias, so the convolution has none."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class DigitsCNN(nn.Module):
    """Images ``[N, 1, 8, 8]`` to logits ``[N, num_classes]``.

    Args:
        channels: Width of the first two convolutions; the third has twice as many.
        dropout: Share of the last features that is dropped in training.
        num_classes: Number of classes.
    """

    def __init__(self, *, channels: int = 16, dropout: float = 0.2, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_block(1, channels),
            *conv_block(channels, channels),
            nn.MaxPool2d(2),
            *conv_block(channels, 2 * channels),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * channels * 4 * 4, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: no softmax here, the loss has its own."""
        logits: Tensor = self.head(self.features(images))
        return logits
