"""What the pictures share: a small task, a quiet Trainer, colors that color-blind readers tell apart."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"


class Curve(LightningModule):
    """A net of one hidden layer fitted to a noisy sine."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def data(num_samples: int = 64, noise: float = 0.5, seed: int = 0, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(num_samples, 1, generator=generator) - 3
    y = x.sin() + noise * torch.randn(num_samples, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def fit(
    module: LightningModule, *callbacks: Any, train: Any = None, val: Any = None, ckpt: Any = None, **kwargs: Any
) -> Trainer:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    trainer = Trainer(callbacks=list(callbacks), **(settings | kwargs))
    trainer.fit(module, train or data(), val, ckpt_path=ckpt)
    return trainer


def start(seed: int = 1, lr: float = 0.1) -> Curve:
    seed_everything(seed, verbose=False)
    return Curve(lr)


def axes(*heights: float) -> tuple[Figure, list[Any]]:
    """Return a figure with panels of these heights above each other, with one horizontal axis."""
    figure = Figure(figsize=(7.0, 0.6 + 2.2 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel in panels:
        panel.grid(color="#E6E6E6")
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(panels)


def save(figure: Figure, script: str) -> None:
    """Write the picture beside its script, or into the folder given on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(script).parent
    figure.savefig(folder / f"{Path(script).stem}.png", dpi=100, metadata={"Software": None})
