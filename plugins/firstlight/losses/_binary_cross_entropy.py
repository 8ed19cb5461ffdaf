"""Binary cross-entropy on logits, with label smoothing that is stated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction, torch_reduction
from firstlight._require import require
from firstlight.losses._tensors import require_probabilities, require_same_shape, widen


def binary_cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    pos_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy between ``sigmoid(logits)`` and targets from 0 to 1, each element a question of its own.

    Shapes: ``logits [*]``, ``target [*]`` of the same shape; ``pos_weight`` a scalar or ``[C]`` for ``logits [*, C]``;
    to ``[]``, or ``[*]`` unreduced.
    Unit: nats. Computed in float32 or better.
    Law: ``pos_weight * t * softplus(-z) + (1 - t) * softplus(z)`` with the smoothed target
    ``t = target * (1 - label_smoothing) + label_smoothing / 2``; the mean is over elements, whatever their weight.
    Source: label smoothing, Szegedy et al. 2016, arXiv:1512.00567, for two classes.

    Raises:
        ValueError: shapes that differ, integer targets or targets outside [0, 1] (values are checked on the CPU only,
            where it needs no wait for a device), smoothing outside [0, 1], an unknown reduction.

    >>> binary_cross_entropy_loss(torch.tensor([0.0, 100.0]), torch.tensor([1.0, 0.0]), reduction="none")
    tensor([  0.6931, 100.0000])
    """
    check_reduction(reduction)
    require(0.0 <= label_smoothing <= 1.0, "label_smoothing", label_smoothing, "between 0 and 1")
    require_same_shape(logits, target, ("logits", "target"))
    require_probabilities(target)
    logits, target = widen(logits), widen(target)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / 2
    if pos_weight is not None:
        pos_weight = pos_weight.to(logits.dtype)
    kind = torch_reduction(reduction, logits)
    return F.binary_cross_entropy_with_logits(logits, target, reduction=kind, pos_weight=pos_weight)


class BinaryCrossEntropyLoss(nn.Module):
    """Module form of :func:`binary_cross_entropy_loss`; ``pos_weight`` is a number, or one number per class.

    Shapes: ``logits [*]``, ``target [*]`` of the same shape; to ``[]``, or ``[*]`` unreduced.
    Unit: nats. Computed in float32 or better.
    Law: equals :class:`torch.nn.BCEWithLogitsLoss` on the smoothed target
    ``target * (1 - label_smoothing) + label_smoothing / 2``.
    Source: label smoothing, Szegedy et al. 2016, arXiv:1512.00567, for two classes.

    Raises:
        ValueError: shapes that differ, integer targets or targets outside [0, 1], smoothing outside [0, 1], weights
            below zero, an unknown reduction.

    >>> BinaryCrossEntropyLoss(pos_weight=2.0)(torch.zeros(2), torch.tensor([1.0, 0.0]))  # 1.5 ln 2
    tensor(1.0397)
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        pos_weight: float | Sequence[float] | Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        require(0.0 <= label_smoothing <= 1.0, "label_smoothing", label_smoothing, "between 0 and 1")
        if pos_weight is not None:
            pos_weight = torch.as_tensor(pos_weight, dtype=torch.get_default_dtype())
            require(
                pos_weight.ndim <= 1 and bool((pos_weight >= 0).all()),
                "pos_weight",
                pos_weight,
                "a non-negative number, or one per class",
            )
        self.register_buffer("pos_weight", pos_weight)
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_loss(
            logits,
            target,
            label_smoothing=self.label_smoothing,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
        )

    @torch.no_grad()
    def minimum(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the lowest value that any logits could reach on this target, as shaped by ``reduction``.

        It is the (weighted) entropy of the smoothed target, 0 for targets of 0 and 1 without smoothing.

        >>> BinaryCrossEntropyLoss().minimum(torch.zeros(1), torch.tensor([0.5]))
        tensor(0.6931)
        """
        smooth = widen(target) * (1 - self.label_smoothing) + self.label_smoothing / 2
        positive = smooth if self.pos_weight is None else smooth * self.pos_weight
        best = torch.log(positive / (1 - smooth)).clamp(-200, 200)  # log 0 and log inf: as sure as float32 can be
        return self.forward(best, target)

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}, pos_weight={self.pos_weight}, reduction={self.reduction!r}"
