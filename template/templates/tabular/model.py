"""A small network beside a linear model, which on tables of a few hundred rows is hard to beat."""

from firstlight.layers import GaussianNoise
from torch import Tensor, nn


class TableNet(nn.Module):
    """Rows ``[N, columns]`` to numbers ``[N]``: a linear model plus what a network adds to it.

    Args:
        columns: Number of columns.
        width: Width of the two hidden layers.
        noise: Standard deviation of the noise on the columns in training. To the linear part it is ridge
            regression: noise s on n rows shrinks weights as a penalty of n s^2 does (Bishop 1995).
        dropout: Share of the hidden units that is dropped in training.
    """

    def __init__(
        self, *, columns: int = 10, width: int = 64, noise: float = 0.3, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.noise = GaussianNoise(noise)
        self.linear = nn.Linear(columns, 1)
        self.hidden = nn.Sequential(
            nn.Linear(columns, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(width, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Return one number for each row."""
        rows = self.noise(rows)
        return self.linear(rows).squeeze(1) + self.head(self.hidden(rows)).squeeze(1)
