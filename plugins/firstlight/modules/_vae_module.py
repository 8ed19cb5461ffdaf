"""VAEModule: an encoder and a decoder that maximize a bound on the likelihood of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric

from firstlight._evaluating import evaluating
from firstlight._require import require
from firstlight.losses import GaussianKLLoss, ReconstructionLoss, gaussian_kl_loss
from firstlight.modules._batch import input_and_target
from firstlight.modules._exportable import Exportable
from firstlight.modules._objective_module import ObjectiveModule
from firstlight.modules._shared import Stage, log_values, seeded_normal
from firstlight.schedules import Schedule

# What ReconstructionLoss leaves out, per element, at scale 1.
_CONSTANT = {"bernoulli": 0.0, "gaussian": 0.5 * math.log(2 * math.pi), "laplace": math.log(2)}


@final
class VAEModule(ObjectiveModule):
    """Train a variational autoencoder: minimize ``reconstruction + beta * kl``, both in nats per sample.

    The term ``reconstruction`` is ``-log p(x | z)`` with all its constants, at one ``z = mean + std * noise`` a sample;
    ``kl`` is the divergence of ``q(z | x)`` from the standard normal, with free bits if there are any. Batches are
    ``x``, ``(x, ...)`` or a mapping with the key ``"input"``; whatever else they hold is ignored.

    Logs: as :class:`ObjectiveModule`, and ``<stage>/elbo``, the evidence lower bound in nats per sample: what the terms
    say at ``beta`` 1 and without free bits, whatever was trained with. In validation and test it too rests on one
    sample of ``z`` (at the mean it would bound nothing), drawn from a generator seeded by the batch: evaluation is
    repeatable and no global random state moves. Metrics compare the reconstruction of that sample with the input.

    Args:
        encoder: ``x [N, *]`` to ``[N, 2 * latent_dim]``, means first, or to the pair ``(mean, log_variance)``.
        decoder: ``z [N, latent_dim]`` to what the likelihood asks for, in the shape of ``x``.
        latent_dim: dimensions of ``z``.
        likelihood: ``"bernoulli"`` (the decoder gives logits, data in [0, 1]), ``"gaussian"`` (the mean) or
            ``"laplace"`` (the median).
        scale: standard deviation of the Gaussian, or scale of the Laplace distribution, of every element.
        learn_scale: train the scale too, from there on; one number for all elements.
        beta: weight of the divergence, a number or a schedule of the optimizer step (annealing).
        free_bits: nats of divergence that cost the same whether they are used or not.
        free_bits_per: see :class:`firstlight.losses.GaussianKLLoss`.
        penalties: see :class:`ObjectiveModule`.
        metrics: see :class:`ObjectiveModule`; they are updated with the reconstruction and the input.
        optimizer: see :class:`ObjectiveModule`.
        loss_weights: see :class:`ObjectiveModule`; that of ``kl`` multiplies ``beta``, so that a weight other than 1
            can be annealed.

    Source: Kingma and Welling 2013, arXiv:1312.6114; beta, Higgins et al. 2017; annealing, Bowman et al. 2015,
    arXiv:1511.06349; a scale for all elements, Rybkin et al. 2020, arXiv:2006.13202.

    Raises:
        ValueError: an argument out of range, a scale for ``"bernoulli"``; in a step, outputs of the wrong shape.
        TypeError: an argument that is neither the object asked for nor its spec.

    >>> module = VAEModule(nn.Linear(8, 4), nn.Linear(2, 8), latent_dim=2, likelihood="gaussian", scale=0.1)
    >>> module.sample(5).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_dim: int,
        likelihood: Literal["bernoulli", "gaussian", "laplace"] = "bernoulli",
        scale: float = 1.0,
        learn_scale: bool = False,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        free_bits_per: Literal["dimension", "sample"] = "dimension",
        penalties: Sequence[nn.Module] = (),
        metrics: Mapping[str, Metric] | None = None,
        optimizer: OptimizerCallable | None = None,
        loss_weights: Mapping[str, float | Schedule] | None = None,
    ) -> None:
        super().__init__(penalties=penalties, metrics=metrics, optimizer=optimizer, loss_weights=loss_weights)
        require(isinstance(encoder, nn.Module), "encoder", encoder, "an nn.Module or its spec", error=TypeError)
        require(isinstance(decoder, nn.Module), "decoder", decoder, "an nn.Module or its spec", error=TypeError)
        require(latent_dim >= 1, "latent_dim", latent_dim, "one or more dimensions")
        require(0 < scale < math.inf, "scale", scale, "above zero, and finite")
        require(isinstance(beta, (int, float, Schedule)), "beta", beta, "a number or a Schedule", error=TypeError)
        require(isinstance(beta, Schedule) or 0 <= beta < math.inf, "beta", beta, "zero or more, and finite")
        if likelihood == "bernoulli":
            require(scale == 1 and not learn_scale, "scale", scale, "left alone with 'bernoulli', which has none")
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.beta = beta
        self.reconstruction = ReconstructionLoss(likelihood=likelihood)
        self.kl = GaussianKLLoss(free_bits=free_bits, free_bits_per=free_bits_per)
        self.log_scale: Tensor
        if learn_scale:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        else:
            self.register_buffer("log_scale", torch.tensor(math.log(scale)))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of ``q(z | x)``, in float32 or better.

        Shapes: ``[N, *]`` to two of ``[N, latent_dim]``.
        """
        output = self.encoder(x)
        if isinstance(output, Tensor):
            expected = (x.shape[0], 2 * self.latent_dim)  # not len(x), which an export would take as fixed
            require(output.shape == expected, "the encoder's output", tuple(output.shape), f"of shape {expected}")
            output = output.chunk(2, dim=1)
        mean, log_variance = output
        for name, part in (("mean", mean), ("log_variance", log_variance)):
            expected = (x.shape[0], self.latent_dim)
            require(part.shape == expected, f"the encoder's {name}", tuple(part.shape), f"of shape {expected}")
        wide = torch.promote_types(mean.dtype, torch.float32)
        return mean.to(wide), log_variance.to(wide)

    def decode(self, z: Tensor) -> Tensor:
        """Return the center of ``p(x | z)``: its mean, for ``"laplace"`` its median.

        Shapes: ``[N, latent_dim]`` to ``[N, *]``.
        """
        return self._center(self.decoder(z))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the centers of ``p(x | z)`` at ``n`` draws of ``z``, in evaluation mode and without gradients.

        Shapes: to ``[n, *]``.
        """
        z = torch.randn(n, self.latent_dim, generator=generator, device=generator.device if generator else self.device)
        with evaluating(self.decoder):
            return self.decode(z.to(self.device))

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        return self._terms(input_and_target(batch)[0])[0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train", None)[0]

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test", batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._predict(input_and_target(batch)[0])

    def export_model(self, batch: Any) -> Exportable:
        """Return ``x`` to what prediction returns: the reconstruction, and mean and log-variance of ``z``."""
        return Exportable(_Predicting(self), (input_and_target(batch)[0],))

    def _predict(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.encode(x)
        return {"reconstruction": self.decode(mean), "mean": mean, "log_variance": log_variance}

    def _evaluate(self, batch: Any, stage: Stage, batch_idx: int) -> Tensor:
        loss, prediction = self._step(batch, stage, batch_idx)
        self.update_metrics(self._center(prediction), input_and_target(batch)[0], stage=stage)
        return loss

    def _step(self, batch: Any, stage: Stage, seed: int | None) -> tuple[Tensor, Tensor]:
        terms, elbo, prediction = self._terms(input_and_target(batch)[0], seed)
        size = self.batch_size(batch)
        log_values(self, {f"{stage}/elbo": elbo}, stage=stage, batch_size=size)
        return self.objective(terms, stage=stage, batch_size=size), prediction

    def _terms(self, x: Tensor, seed: int | None = None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the terms of the loss, the bound, and what the decoder said."""
        mean, log_variance = self.encode(x)
        noise = torch.randn_like(mean) if seed is None else seeded_normal(mean, seed)
        prediction = self.decoder(mean + torch.exp(0.5 * log_variance) * noise)
        scale = torch.exp(self.log_scale)
        size = x[0].numel()
        reconstruction = self.reconstruction(prediction / scale, x / scale)
        reconstruction = reconstruction + size * (self.log_scale + _CONSTANT[self.reconstruction.likelihood])
        kl = self.kl(mean, log_variance)
        bits = gaussian_kl_loss(mean.detach(), log_variance.detach()) if self.kl.free_bits else kl.detach()
        return {"reconstruction": reconstruction, "kl": kl}, -(reconstruction.detach() + bits), prediction

    def _center(self, prediction: Tensor) -> Tensor:
        return torch.sigmoid(prediction) if self.reconstruction.likelihood == "bernoulli" else prediction

    def _weight(self, name: str) -> float:
        weight = super()._weight(name)
        if name != "kl":
            return weight
        return weight * (self._factor("beta", self.beta) if isinstance(self.beta, Schedule) else self.beta)


class _Predicting(nn.Module):
    """The prediction of a VAE as a model of its own."""

    def __init__(self, vae: VAEModule) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.vae._predict(x)
