"""Healthy: learning without labels, where a loss need not fall and samples may meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Adam

from benchmark.case import Case, Knobs, Program
from benchmark.common import ArrayData, Arrays, digits, mlp


class VAE(LightningModule):
    """Variational auto-encoder; the weight of the KL divergence grows over the first 200 steps."""

    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.encoder = mlp(64, width, 16)
        self.decoder = mlp(8, width, 64)
        self.lr = lr

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decoder(code), mean, log_variance

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstruction error and KL divergence: summed over pixels and dimensions, mean over samples."""
        logits, mean, log_variance = self(x)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(x)
        return reconstruction, kl

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        reconstruction, kl = self.terms(batch[0])
        loss = reconstruction + min(1.0, self.global_step / 200) * kl
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        reconstruction, kl = self.terms(batch[0])
        self.log("val/reconstruction", reconstruction)
        self.log("val/kl", kl)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=self.lr)


def vae(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = VAE(knobs.width(64), knobs.lr(1e-3))
    return module, ArrayData(digits, batch_size=knobs.batch(64), seed=seed), {}


@lru_cache(maxsize=8)
def ring(seed: int) -> Arrays:
    """Return 2048 points near the unit circle (and no labels)."""
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(2048, 2, generator=generator))
    points = points + 0.05 * torch.randn(points.shape, generator=generator)
    return points, torch.zeros(2048)


class GAN(LightningModule):
    """Two nets against each other, each with its own optimizer."""

    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        leaky = partial(nn.LeakyReLU, 0.2)
        self.generator = mlp(4, width, width, 2, activation=leaky)
        self.discriminator = mlp(2, width, width, 1, activation=leaky)
        self.lr = lr

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def training_step(self, batch: Arrays, batch_idx: int) -> None:
        real = batch[0]
        generator, discriminator = self.optimizers()
        fake = self(torch.randn(len(real), 4, device=self.device))

        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake.detach())
        loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        discriminator.zero_grad()
        self.manual_backward(loss)
        discriminator.step()
        self.log("train/discriminator", loss)

        loss = F.softplus(-self.discriminator(fake)).mean()
        generator.zero_grad()
        self.manual_backward(loss)
        generator.step()
        self.log("train/generator", loss)

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        real = batch[0]
        fake = self(torch.randn(len(real), 4, device=self.device))
        between, among_real, among_fake = (
            torch.cdist(a, b).mean() for a, b in ((real, fake), (real, real), (fake, fake))
        )
        self.log("val/energy_distance", 2 * between - among_real - among_fake)

    def configure_optimizers(self) -> Any:
        nets = (self.generator, self.discriminator)
        return [Adam(net.parameters(), lr=self.lr, betas=(0.5, 0.9)) for net in nets]


def gan(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = GAN(knobs.width(64), knobs.lr(1e-3))
    return module, ArrayData(partial(ring, seed), batch_size=knobs.batch(64), seed=seed), {}


class Contrastive(LightningModule):
    """Tells two noisy views of a sample from the views of all others of the batch."""

    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.net = mlp(64, width, 16)
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def info_nce(self, x: Tensor) -> Tensor:
        first, second = (self(x + 0.15 * torch.randn_like(x)) for _ in range(2))
        return F.cross_entropy(first @ second.T / 0.2, torch.arange(len(x), device=x.device))

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        loss = self.info_nce(batch[0])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        self.log("val/loss", self.info_nce(batch[0]))

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=self.lr)


def contrastive(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Contrastive(knobs.width(64), knobs.lr(1e-3))
    return module, ArrayData(digits, batch_size=knobs.batch(64), seed=seed), {}


class AutoEncoder(LightningModule):
    """Squeezes 64 pixels through 8 units."""

    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.net = mlp(64, width, 8, width, 64, activation=nn.Tanh).append(nn.Sigmoid())
        self.criterion = nn.MSELoss()
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch[0]), batch[0])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        self.log("val/loss", self.criterion(self(batch[0]), batch[0]))

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=self.lr)


def auto_encoder(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = AutoEncoder(knobs.width(32), knobs.lr(3e-3))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


healthy: Callable[..., Case] = partial(Case, family="healthy", direction="min", reference=None)

CASES = [  # in epochs of 22, 24 and 22 steps of 64
    healthy(id="G05", title="digits, variational auto-encoder", make=vae, epochs=23, metric="val/reconstruction"),
    healthy(id="G06", title="ring, GAN", make=gan, epochs=62, metric="val/energy_distance"),
    healthy(id="G07", title="digits, contrastive", make=contrastive, epochs=18, metric="val/loss"),
    healthy(id="G17", title="digits, auto-encoder", make=auto_encoder, epochs=20, metric="val/loss"),
]
