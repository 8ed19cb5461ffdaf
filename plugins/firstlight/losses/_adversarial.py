"""Adversarial losses: what a discriminator and a generator minimize, and the penalties that keep a critic smooth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from firstlight._reduce import reduce
from firstlight._require import require
from firstlight.losses._tensors import require_floating, require_same_shape, rows_of, widen

Kind: TypeAlias = Literal["non_saturating", "hinge", "least_squares", "wasserstein"]


class AdversarialLoss(nn.Module):
    """The two losses of a generative adversarial network, on the raw outputs (logits) of the discriminator.

    ``discriminator(real_logits, fake_logits)`` and ``generator(fake_logits)``, with ``r`` and ``f`` for the logits:

    ================== ====================================== ===========================
    kind               discriminator                          generator
    ================== ====================================== ===========================
    ``non_saturating`` ``softplus(-r) + softplus(f)``         ``softplus(-f)``
    ``hinge``          ``relu(1 - r) + relu(1 + f)``          ``-f``
    ``least_squares``  ``(r - 1)^2 / 2 + f^2 / 2``            ``(f - 1)^2 / 2``
    ``wasserstein``    ``f - r``                              ``-f``
    ================== ====================================== ===========================

    Real and fake logits are averaged each by itself, so the two batches need not have the same size; there is no
    ``reduction``. It has two calls and no ``forward``.

    Shapes: ``real_logits [*]``, ``fake_logits [*]``, any two shapes; to ``[]``.
    Unit: nats for ``non_saturating``, else that of the logits. Computed in float32 or better.
    Law: finite gradients however sure the discriminator is; with ``non_saturating`` a discriminator that cannot tell
    pays ``2 ln 2``.
    Source: Goodfellow et al. 2014, arXiv:1406.2661 (non-saturating); Lim and Ye 2017, arXiv:1705.02894 (hinge); Mao et
    al. 2017, arXiv:1611.04076 (least squares); Arjovsky et al. 2017, arXiv:1701.07875 (Wasserstein).

    Raises:
        ValueError: an unknown kind, integer logits.

    >>> loss = AdversarialLoss(kind="non_saturating")
    >>> loss.discriminator(torch.tensor([2.0]), torch.tensor([-1.0])), loss.generator(torch.tensor([-1.0]))
    (tensor(0.4402), tensor(1.3133))
    """

    def __init__(self, *, kind: Kind = "non_saturating") -> None:
        super().__init__()
        require(kind in get_args(Kind), "kind", kind, "'non_saturating', 'hinge', 'least_squares' or 'wasserstein'")
        self.kind = kind

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Return the loss of the discriminator; give it ``fake.detach()`` samples, so the generator is left alone."""
        require_floating(real_logits, "real_logits")
        require_floating(fake_logits, "fake_logits")
        real, fake = widen(real_logits), widen(fake_logits)
        if self.kind == "non_saturating":
            real, fake = F.softplus(-real), F.softplus(fake)
        elif self.kind == "hinge":
            real, fake = F.relu(1 - real), F.relu(1 + fake)
        elif self.kind == "least_squares":
            real, fake = 0.5 * (real - 1).square(), 0.5 * fake.square()
        else:
            real = -real
        return reduce(real, "mean") + reduce(fake, "mean")

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Return the loss of the generator, from what the discriminator says of its samples."""
        require_floating(fake_logits, "fake_logits")
        fake = widen(fake_logits)
        if self.kind == "non_saturating":
            return reduce(F.softplus(-fake), "mean")
        if self.kind == "least_squares":
            return reduce(0.5 * (fake - 1).square(), "mean")
        return -reduce(fake, "mean")

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


Critic: TypeAlias = Callable[[Tensor], Tensor]


def gradient_penalty(
    critic: Critic, real: Tensor, fake: Tensor, *, weight: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """``weight * E (|grad critic(x)| - 1)^2`` at points between real and fake samples (WGAN-GP; the paper: 10).

    Shapes: ``real [N, *]``, ``fake [N, *]``; to ``[]``. The critic returns any shape with one row per sample.
    Unit: that of the critic's output, squared, times ``weight``. Run in float32 or better, autocast off.
    Law: the norm is over all dimensions of a sample; a critic with zero gradient costs ``weight``, with finite
    gradients for its parameters.
    Source: Gulrajani et al. 2017, arXiv:1704.00028.

    Raises:
        ValueError: shapes that differ, a weight below zero, a critic in training mode with batch normalization, whose
            output for one sample depends on the others.

    >>> critic = lambda x: 0.5 * x.flatten(1).sum(1)  # gradient 1/2 in each of 12 pixels
    >>> gradient_penalty(critic, torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2))  # (sqrt(12) / 2 - 1)^2
    tensor(0.5359)
    """
    require(0 <= weight < float("inf"), "weight", weight, "zero or more, and finite")
    require_same_shape(real, fake, ("real", "fake"))
    require(real.ndim > 0, "real", tuple(real.shape), "of shape [N, *], a batch of samples")
    real, fake = widen(real.detach()), widen(fake.detach())
    shape = (len(real),) + (1,) * (real.ndim - 1)
    place = torch.rand(shape, generator=generator, device=real.device, dtype=real.dtype)
    slopes = rows_of(_input_gradient(critic, torch.lerp(fake, real, place)))
    # vector_norm has gradient 0 at 0, where sqrt(sum of squares) has NaN
    return weight * reduce((torch.linalg.vector_norm(slopes, dim=1) - 1).square(), "mean")


def r1_penalty(critic: Critic, real: Tensor, *, gamma: float = 10.0) -> Tensor:
    """``gamma / 2 * E |grad critic(x)|^2`` at real samples: keeps the discriminator flat where the data are.

    Computed every k steps only ("lazy"), it is multiplied by k to keep its strength: ``gamma=10.0 * k``.

    Shapes: ``real [N, *]``; to ``[]``. The critic returns any shape with one row per sample.
    Unit: that of the critic's output, squared. Run in float32 or better, autocast off.
    Law: the norm is over all dimensions of a sample; 0 for a critic that is flat.
    Source: Mescheder et al. 2018, arXiv:1801.04406; lazy, Karras et al. 2020, arXiv:1912.04958.

    Raises:
        ValueError: ``gamma`` below zero, a critic in training mode with batch normalization.

    >>> critic = lambda x: 0.5 * x.flatten(1).sum(1)  # gradient 1/2 in each of 12 pixels
    >>> r1_penalty(critic, torch.zeros(4, 3, 2, 2))  # 10 / 2 * 12 / 4
    tensor(15.)
    """
    require(0 <= gamma < float("inf"), "gamma", gamma, "zero or more, and finite")
    require(real.ndim > 0, "real", tuple(real.shape), "of shape [N, *], a batch of samples")
    slopes = rows_of(_input_gradient(critic, widen(real.detach())))
    return 0.5 * gamma * reduce(slopes.square().sum(1), "mean")


def _input_gradient(critic: Critic, points: Tensor) -> Tensor:
    """Return the gradient of the critic at each point, itself differentiable."""
    if isinstance(critic, nn.Module):
        mixing = [name for name, layer in critic.named_modules() if isinstance(layer, _BatchNorm) and layer.training]
        require(
            not mixing,
            "critic",
            ", ".join(mixing),
            "without batch normalization in training mode, which mixes the gradients of samples (use LayerNorm, "
            "GroupNorm or InstanceNorm)",
        )
    points.requires_grad_()
    with torch.enable_grad(), torch.autocast(points.device.type, enabled=False):
        scores = critic(points)
        (slopes,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return slopes
