"""Reconstruction: how unlikely the data are under what a decoder says, in nats per sample."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction, reduce
from firstlight._require import require
from firstlight.losses._tensors import require_floating, require_probabilities, require_same_shape, rows_of, widen

Likelihood: TypeAlias = Literal["bernoulli", "gaussian", "laplace"]


class ReconstructionLoss(nn.Module):
    """Negative log-likelihood of the data, summed over each sample and averaged over the batch.

    ``likelihood`` says what the prediction means: ``"bernoulli"`` logits (data from 0 to 1), ``"gaussian"`` the mean
    at standard deviation 1 (half the squared error), ``"laplace"`` the median at scale 1 (the absolute error). The
    constants ``log(2 pi) / 2`` and ``log 2`` of the last two are left out, so that a perfect reconstruction costs 0.
    A sum, not a mean, over the sample: only so does ``loss + KL`` stay the bound that a VAE maximizes.

    Shapes: ``prediction [N, *]``, ``target [N, *]``; to ``[]``, or ``[N]`` unreduced.
    Unit: nats per sample. Computed in float32 or better.
    Law: equals ``-log p(target)`` of torch's distribution of that name, up to the constant.
    Source: Kingma and Welling 2013, arXiv:1312.6114.

    Raises:
        ValueError: an unknown likelihood or reduction, shapes that differ or have no batch dimension, integer
            targets, data outside [0, 1] for ``"bernoulli"`` (values are checked on the CPU only).

    >>> ReconstructionLoss(likelihood="gaussian")(torch.ones(5, 3, 2, 2), torch.zeros(5, 3, 2, 2))  # 12 / 2
    tensor(6.)
    """

    def __init__(self, *, likelihood: Likelihood = "bernoulli", reduction: Reduction = "mean") -> None:
        super().__init__()
        require(likelihood in get_args(Likelihood), "likelihood", likelihood, "'bernoulli', 'gaussian' or 'laplace'")
        check_reduction(reduction)
        self.likelihood = likelihood
        self.reduction = reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        require_same_shape(prediction, target)
        require(prediction.ndim > 0, "prediction", tuple(prediction.shape), "of shape [N, *], a batch of samples")
        if self.likelihood == "bernoulli":
            require_probabilities(target)
        else:
            require_floating(target)
        each = self._of(widen(prediction), widen(target))
        return reduce(rows_of(each).sum(1), self.reduction)

    def _of(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(prediction, target, reduction="none")
        if self.likelihood == "gaussian":
            return 0.5 * F.mse_loss(prediction, target, reduction="none")
        return F.l1_loss(prediction, target, reduction="none")

    @torch.no_grad()
    def minimum(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the lowest value that any prediction could reach on this target, as shaped by ``reduction``.

        0, but for ``"bernoulli"`` with grey values: there it is their entropy.

        >>> ReconstructionLoss().minimum(torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]))
        tensor(0.6931)
        """
        target = widen(target)
        return self.forward(torch.logit(target).clamp(-200, 200) if self.likelihood == "bernoulli" else target, target)

    def extra_repr(self) -> str:
        return f"likelihood={self.likelihood!r}, reduction={self.reduction!r}"
