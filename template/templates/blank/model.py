"""The idea goes here: a network and the terms of its loss."""

from firstlight.modules import ObjectiveModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F


class StarterModule(ObjectiveModule):
    """A small network that learns a function of two numbers.

    Args:
        width: Width of the hidden layers.
        optimizer: From parameter groups to an optimizer; ``configs/default.yaml`` names it.
    """

    def __init__(self, *, width: int = 64, optimizer: OptimizerCallable | None = None) -> None:
        super().__init__(optimizer=optimizer)
        # YOUR TURN: your network.
        self.network = nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def configure_model(self) -> None:
        """Shard the repeated blocks of a large model here; the strategy of fsdp2.yaml wants it to exist."""

    def forward(self, points: Tensor) -> Tensor:
        """Return one value ``[N, 1]`` for each point ``[N, 2]``."""
        values: Tensor = self.network(points)
        return values

    def loss_terms(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the named terms of the loss; each is logged, and their sum is trained on."""
        points, values = batch
        # YOUR TURN: your loss. A second term is a second entry.
        return {"task": F.mse_loss(self(points), values)}

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the predictions for a batch; those of ``predict_dataloader`` are pairs, like the others."""
        predicted: Tensor = self(batch[0])
        return predicted
