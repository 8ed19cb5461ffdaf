"""GANModule: a generator and a discriminator, each with an optimizer, trained in turn."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from firstlight._evaluating import evaluating
from firstlight._require import require
from firstlight.losses import AdversarialLoss, gradient_penalty, r1_penalty
from firstlight.modules._batch import input_and_target, size_of
from firstlight.modules._exportable import Exportable
from firstlight.modules._recorded import recorded
from firstlight.modules._shared import Stage, check_optimizer, log_values, optimizer_of, seeded_normal
from firstlight.modules._whole import kept_whole, let_go


@final
class GANModule(LightningModule):
    """Train a generative adversarial network: at every batch a step of the discriminator, then one of the generator.

    Batches are ``x``, ``(x, ...)`` or a mapping with the key ``"input"``; whatever else they hold is ignored. The
    generator gets standard normal numbers. While one part steps the other's parameters do not require gradients: none
    are computed in vain.

    Optimization is manual. ``trainer.global_step`` and ``max_steps`` count the steps of both optimizers. The callbacks
    of firstlight clip, schedule and watch each optimizer's steps; ``gradient_clip_val`` and
    ``accumulate_grad_batches`` of the Trainer are refused by Lightning. Optimizer 0 is the generator's.

    Logs: ``<stage>/loss/discriminator`` and ``<stage>/loss/generator``; ``train/penalty/gradient`` and
    ``train/penalty/r1``, weighted, the last as if it were taken at every step. There is no ``<stage>/loss``: no sum of
    the two is minimized, and neither says how good samples are. Validation and test draw from a generator seeded by
    the batch.

    Args:
        generator: ``z [N, latent_dim]`` to samples in the shape of ``x``.
        discriminator: samples to logits, a row for each.
        latent_dim: dimensions of ``z``.
        loss: ``AdversarialLoss(kind=...)``; default: non-saturating.
        discriminator_steps: steps of the discriminator, each on a batch of its own, for one of the generator (WGAN: 5).
        gradient_penalty: weight of :func:`firstlight.losses.gradient_penalty` (WGAN-GP: 10); 0: none.
        r1: gamma of :func:`firstlight.losses.r1_penalty` (10 and more); 0: none.
        r1_every: take the R1 penalty at every k-th step of the discriminator only, k times as strong (StyleGAN2: 16).
        generator_optimizer: from parameter groups to an optimizer; default Adam at 2e-4 with betas 0.5 and 0.999.
        discriminator_optimizer: the same for the discriminator.

    Source: Goodfellow et al. 2014, arXiv:1406.2661; several steps and the penalty, Gulrajani et al. 2017,
    arXiv:1704.00028; R1, Mescheder et al. 2018, arXiv:1801.04406, taken lazily, Karras et al. 2020, arXiv:1912.04958;
    the default optimizer, Radford et al. 2015, arXiv:1511.06434.

    Raises:
        ValueError: an argument out of range; samples in another shape than the data; plain ``ddp``, which waits for
            the gradients of both parts.
        TypeError: an argument that is neither the object asked for nor its spec.

    >>> module = GANModule(nn.Linear(2, 8), nn.Linear(8, 1), latent_dim=2, loss=AdversarialLoss(kind="hinge"), r1=1.0)
    >>> module.sample(5).shape
    torch.Size([5, 8])
    """

    @recorded
    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        latent_dim: int,
        loss: AdversarialLoss | None = None,
        discriminator_steps: int = 1,
        gradient_penalty: float = 0.0,
        r1: float = 0.0,
        r1_every: int = 16,
        generator_optimizer: OptimizerCallable | None = None,
        discriminator_optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__()
        for name, part in (("generator", generator), ("discriminator", discriminator)):
            require(isinstance(part, nn.Module), name, part, "an nn.Module or its spec", error=TypeError)
        loss = AdversarialLoss() if loss is None else loss
        require(isinstance(loss, AdversarialLoss), "loss", loss, "an AdversarialLoss or its spec", error=TypeError)
        for name, number in (
            ("latent_dim", latent_dim),
            ("discriminator_steps", discriminator_steps),
            ("r1_every", r1_every),
        ):
            require(number >= 1, name, number, "one or more")
        for name, weight in (("gradient_penalty", gradient_penalty), ("r1", r1)):
            require(0 <= weight < math.inf, name, weight, "zero or more, and finite")
        check_optimizer("generator_optimizer", generator_optimizer)
        check_optimizer("discriminator_optimizer", discriminator_optimizer)
        self.automatic_optimization = False
        self.generator = generator
        self.discriminator = discriminator
        self.latent_dim = latent_dim
        self.loss = loss
        self.discriminator_steps = discriminator_steps
        self.gradient_penalty = gradient_penalty
        self.r1 = r1
        self.r1_every = r1_every
        default = functools.partial(Adam, lr=2e-4, betas=(0.5, 0.999))
        self._make_generator_optimizer = generator_optimizer or default
        self._make_discriminator_optimizer = discriminator_optimizer or default

    def configure_model(self) -> None:
        """Nothing to build; strategies that shard the model ask that the hook is there."""

    def configure_optimizers(self) -> list[Optimizer]:
        return [
            optimizer_of(self.generator, self._make_generator_optimizer, name="generator_optimizer"),
            optimizer_of(self.discriminator, self._make_discriminator_optimizer, name="discriminator_optimizer"),
        ]

    def on_fit_start(self) -> None:
        wrapped = self.trainer.strategy.model
        require(
            not isinstance(wrapped, DistributedDataParallel) or wrapped.find_unused_parameters,
            "strategy",
            "ddp",
            "'ddp_find_unused_parameters_true': each backward pass is through one of the two parts only",
        )

    def forward(self, z: Tensor) -> Tensor:
        samples: Tensor = self.generator(z)
        return samples

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` samples, in evaluation mode and without gradients.

        Shapes: to ``[n, *]``.
        """
        z = torch.randn(n, self.latent_dim, generator=generator, device=generator.device if generator else self.device)
        with evaluating(self.generator):
            return self.forward(z.to(self.device))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real = input_and_target(batch)[0]
        number = self.trainer.fit_loop.total_batch_idx  # over all epochs, and right after a resume
        values = self._train_discriminator(real, lazy=number % self.r1_every == 0)
        if (number + 1) % self.discriminator_steps == 0:
            values |= self._train_generator(real)
        log_values(self, values, stage="train", batch_size=len(real))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "test", batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.forward(torch.randn(size_of(batch), self.latent_dim, device=self.device))

    def export_model(self, batch: Any) -> Exportable:
        """Return the generator, from ``z [N, latent_dim]`` to samples."""
        return Exportable(self.generator, (torch.randn(size_of(batch), self.latent_dim, device=self.device),))

    def _train_discriminator(self, real: Tensor, *, lazy: bool) -> dict[str, Tensor]:
        _, optimizer = self._both_optimizers()
        with self._alone(optimizer):
            fake = self._generate(real)
            return self._discriminate(real, fake, lazy=lazy, step=functools.partial(self._step, optimizer))

    def _discriminate(
        self, real: Tensor, fake: Tensor, *, lazy: bool, step: Callable[[Tensor], Any]
    ) -> dict[str, Tensor]:
        """Step on the discriminator's loss, and return its parts."""
        total = loss = self.loss.discriminator(self.discriminator(real), self.discriminator(fake))
        values = {"train/loss/discriminator": loss}
        if not (self.gradient_penalty or (self.r1 and lazy)):
            step(total)
            return values
        with kept_whole(self.discriminator) as gather:
            if self.gradient_penalty:
                penalty = gradient_penalty(self.discriminator, real, fake, weight=self.gradient_penalty)
                total = total + penalty
                values["train/penalty/gradient"] = penalty
            if self.r1 and lazy:
                penalty = r1_penalty(self.discriminator, real, gamma=self.r1)
                total = total + self.r1_every * penalty
                values["train/penalty/r1"] = penalty
            gather()
            step(total)
        return values

    @contextmanager
    def _alone(self, optimizer: Any) -> Iterator[None]:
        """Let the other part's parameters require no gradients: none are computed in vain, and samples have no graph.

        It matters under autocast too, which keeps its casts of parameters that do require them until the end of the
        training step, past a step of the optimizer.
        """
        with self.toggled_optimizer(optimizer):
            let_go(self)
            yield

    def _train_generator(self, real: Tensor) -> dict[str, Tensor]:
        optimizer, _ = self._both_optimizers()
        with self._alone(optimizer):
            loss = self.loss.generator(self.discriminator(self._generate(real)))
            self._step(optimizer, loss)
        return {"train/loss/generator": loss}

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def _evaluate(self, batch: Any, stage: Stage, batch_idx: int) -> None:
        real = input_and_target(batch)[0]
        logits = self.discriminator(self._generate(real, seed=batch_idx))
        values = {
            f"{stage}/loss/discriminator": self.loss.discriminator(self.discriminator(real), logits),
            f"{stage}/loss/generator": self.loss.generator(logits),
        }
        log_values(self, values, stage=stage, batch_size=len(real))

    def _generate(self, real: Tensor, seed: int | None = None) -> Tensor:
        """Return as many samples as there are real ones."""
        z = torch.empty(len(real), self.latent_dim, device=real.device)
        fake = self.forward(z.normal_() if seed is None else seeded_normal(z, seed))
        ok = fake.shape == real.shape
        require(ok, "the generator's output", tuple(fake.shape), f"in the shape of the data, {tuple(real.shape)}")
        return fake

    def _both_optimizers(self) -> tuple[Any, Any]:
        optimizers: Any = self.optimizers()
        return optimizers[0], optimizers[1]
