"""The bound of a VAE over training against the likelihood of probabilistic PCA, both of held-out digits."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import LearningRateScheduler
from firstlight.modules import VAEModule
from firstlight.schedules import WarmupCosine

LATENT = 4


class Bounds(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.values.append(float(trainer.callback_metrics["val/elbo"]))


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, outputs)
    )


torch.set_num_threads(1)
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
seed_everything(0, verbose=False)
images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
held_out = torch.arange(len(images)) % 5 == 0
train, val = images[~held_out], images[held_out]
module = VAEModule(
    perceptron(64, 2 * LATENT),
    perceptron(LATENT, 64),
    latent_dim=LATENT,
    likelihood="gaussian",
    scale=0.1,
    learn_scale=True,
    optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
)
bounds = Bounds()
trainer = Trainer(
    accelerator="cpu",
    max_epochs=40,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
    callbacks=[LearningRateScheduler(WarmupCosine(0.05)), bounds],
)
trainer.fit(module, DataLoader(TensorDataset(train), 64, shuffle=True), DataLoader(TensorDataset(val), 360))

figure = Figure(figsize=(6, 2.6), dpi=110, layout="constrained")
panel = figure.subplots()
panel.plot(range(1, 41), bounds.values, color="#0072B2", lw=1.6, label="VAE, bound on the log-likelihood")
# scikit-learn's score is the log-likelihood of probabilistic PCA (Tipping and Bishop 1999)
panel.axhline(PCA(LATENT).fit(train.double()).score(val.double()), color="#E69F00", lw=1.2, label="PCA, log-likelihood")
panel.set(xlabel="epoch", ylabel="nats per held-out digit", xlim=(0, 40), ylim=(-40, 20))
panel.legend(frameon=False, loc="lower right")
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
figure.savefig(folder / "vae_module.png")
