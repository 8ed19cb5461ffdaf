"""Draws what a VAE and a GAN make of the digits of scikit-learn: python docs/figures/generative.py (a minute)."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib import image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import LearningRateScheduler, WeightEMA
from firstlight.modules import GANModule, VAEModule
from firstlight.schedules import WarmupCosine

HERE = Path(__file__).parent
IMAGES = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16


def perceptron(inputs: int, outputs: int, *last: nn.Module) -> nn.Sequential:
    layers = nn.Linear(inputs, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, outputs)
    return nn.Sequential(nn.Flatten(), *layers, *last)


def train(module: LightningModule, *callbacks: LearningRateScheduler | WeightEMA) -> None:
    trainer = Trainer(
        accelerator="cpu", max_epochs=60, logger=False, enable_checkpointing=False, callbacks=list(callbacks)
    )
    trainer.fit(module, DataLoader(TensorDataset(IMAGES), batch_size=64, shuffle=True))


def draw(name: str, rows: list[Tensor]) -> None:
    """Write rows of samples as a picture, a pixel of a digit 6 by 6 of it."""
    cells = [[nn.functional.pad(sample[0], (1, 1, 1, 1)) for sample in row] for row in rows]
    grid = torch.cat([torch.cat(row, 1) for row in cells]).clamp(0, 1).repeat_interleave(6, 0).repeat_interleave(6, 1)
    image.imsave(HERE / name, (1 - grid).numpy(), cmap="gray", vmin=0, vmax=1)


def main() -> None:
    seed_everything(0)
    unflatten = nn.Unflatten(1, (1, 8, 8))
    vae = VAEModule(
        perceptron(64, 8),
        perceptron(4, 64, unflatten),
        latent_dim=4,
        likelihood="gaussian",
        scale=0.1,
        learn_scale=True,
        optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
    )
    train(vae, LearningRateScheduler(WarmupCosine(0.05)))
    samples = vae.sample(24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        draw("vae-digits.png", [IMAGES[:12], vae.eval()(IMAGES[:12]), samples[:12], samples[12:]])

    adam = functools.partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99))
    gan = GANModule(
        perceptron(16, 64, unflatten),
        perceptron(64, 1),
        latent_dim=16,
        r1=0.2,
        r1_every=4,
        generator_optimizer=adam,
        discriminator_optimizer=adam,
    )
    train(gan, WeightEMA(0.99))
    draw("gan-digits.png", list(gan.sample(48, generator=torch.Generator().manual_seed(0)).split(12)))


if __name__ == "__main__":
    main()
