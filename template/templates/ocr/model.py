"""A reader of lines: convolutions see strokes, an LSTM goes over the columns in both directions."""

from torch import Tensor, nn


class LineReader(nn.Module):
    """Images ``[N, 1, 8, W]`` to logits ``[N, W, num_classes]``, one frame a column; class 0 is the blank.

    Args:
        channels: Width of the two convolutions.
        width: Width of the LSTM in each direction.
        num_classes: Number of classes, the blank among them.
        dropout: Share of the channels before the LSTM, and of its outputs, that is dropped in training.
    """

    def __init__(
        self, *, channels: int = 16, width: int = 48, num_classes: int = 11, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.strokes = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d((2, 1)),  # height only: a column stays a frame
            nn.Dropout2d(dropout),
        )
        self.columns = nn.LSTM(4 * channels, width, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: no softmax here, the loss has its own."""
        frames = self.strokes(images).flatten(1, 2).transpose(1, 2)
        logits: Tensor = self.head(self.columns(frames)[0])
        return logits
