"""Focal loss over exclusive classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction, reduce
from firstlight._require import require
from firstlight.losses._focal_floor import lowest_focal
from firstlight.losses._focal_term import focal_term
from firstlight.losses._tensors import widen


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """``-alpha_y (1 - p_y)^gamma log(p_y)`` with ``p = softmax(logits)``.

    Soft or smoothed targets ``t`` sum it over classes: ``sum_c t_c alpha_c (1 - p_c)^gamma (-log p_c)``, with
    ``t = (1 - label_smoothing) onehot + label_smoothing / C``. ``alpha`` scales a class; it does not enter the
    denominator: the mean is over all targets that are not ignored, and over none of them it is 0.

    Shapes: ``logits [N, C, *]``; ``target [N, *]`` (class indices), or probabilities shaped like ``logits``; ``alpha
    [C]``; to ``[]``, or ``[N, *]`` unreduced.
    Unit: nats. Computed in float32 or better; in log space, so that loss and gradient are finite for finite logits.
    Law: ``gamma=0`` is the cross-entropy; two classes are :func:`binary_focal_loss` of the difference of the logits.
    Source: Lin et al. 2017, arXiv:1708.02002.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, class indices out of range (checked on the CPU
            only), ``gamma`` below zero, smoothing outside [0, 1], an unknown reduction.

    >>> focal_loss(torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]]), torch.tensor([0, 2]), reduction="none")
    tensor([0.0041, 1.4520])
    """
    _check(gamma, label_smoothing, reduction)
    by_index = _takes_indices(logits, target)
    logits = widen(logits)
    if alpha is not None:
        require(
            alpha.shape == (logits.shape[1],),
            "alpha",
            tuple(alpha.shape),
            f"one number for each of the {logits.shape[1]} classes",
        )
        alpha = alpha.to(logits.dtype)
    if not by_index:
        return reduce(_from_probabilities(logits, target.to(logits.dtype), gamma, alpha, label_smoothing), reduction)
    counts = target != ignore_index
    classes = torch.where(counts, target, 0).long()
    _require_classes(classes, logits.shape[1])
    if label_smoothing:
        one_hot = F.one_hot(classes, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        losses = _from_probabilities(logits, one_hot, gamma, alpha, label_smoothing)
    else:
        losses = _from_indices(logits, classes, gamma, alpha)
    return reduce(torch.where(counts, losses, 0.0), reduction, counts.sum())


def _check(gamma: float, label_smoothing: float, reduction: str) -> None:
    check_reduction(reduction)
    require(0 <= gamma < float("inf"), "gamma", gamma, "zero or more, and finite")
    require(0.0 <= label_smoothing <= 1.0, "label_smoothing", label_smoothing, "between 0 and 1")


def _takes_indices(logits: Tensor, target: Tensor) -> bool:
    require(
        logits.ndim >= 2 and logits.shape[1] >= 2,
        "logits",
        tuple(logits.shape),
        "of shape [N, C, *] with two classes or more (for one logit a question, use binary_focal_loss)",
    )
    index_shape = logits.shape[:1] + logits.shape[2:]
    by_index = target.shape == index_shape and not target.is_floating_point()
    if not by_index and not (target.shape == logits.shape and target.is_floating_point()):
        raise ValueError(
            f"target must be class indices of shape {tuple(index_shape)} or floating-point probabilities of shape "
            f"{tuple(logits.shape)} for logits of shape {tuple(logits.shape)}; got {target.dtype} of shape "
            f"{tuple(target.shape)}"
        )
    return by_index


def _require_classes(classes: Tensor, num_classes: int) -> None:
    """Raise on labels out of range, on the CPU; elsewhere it would mean waiting for the device."""
    if classes.device.type != "cpu" or not classes.numel() or torch.compiler.is_compiling():
        return
    low, high = torch.aminmax(classes)
    try:
        ok = bool((low >= 0) & (high < num_classes))
    except RuntimeError:  # inside torch.func.vmap a tensor has no one value
        return
    if not ok:
        raise ValueError(
            f"target must be from 0 to {num_classes - 1}, or ignore_index; got labels from {int(low)} to {int(high)}"
        )


def _from_indices(logits: Tensor, classes: Tensor, gamma: float, alpha: Tensor | None) -> Tensor:
    margin: Tensor = _Margin.apply(logits, classes.unsqueeze(1))[0]  # type: ignore[no-untyped-call]
    losses = focal_term(margin, torch.ones_like(margin), gamma)
    return losses if alpha is None else losses * alpha[classes]


class _Margin(torch.autograd.Function):
    """The logit of one class over the log-sum-exp of the *others*: ``p_y = sigmoid(margin)``, exact near 1 too.

    Written out for its memory: one array of the size of the logits, in which the backward finds the softmax.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest = logits.scatter(1, index, float("-inf"))
        top = rest.amax(1, keepdim=True)
        total = rest.sub_(top).exp_().sum(1, keepdim=True)
        margin = logits.gather(1, index) - top - total.log()
        return margin.squeeze(1), rest, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        logits, index, rest, total = ctx.saved_tensors
        grad = grad.unsqueeze(1)
        if torch.is_grad_enabled():  # somebody will differentiate this again
            return (-grad * logits.scatter(1, index, float("-inf")).softmax(1)).scatter_add(1, index, grad), None
        return (rest * (-grad / total)).scatter_(1, index, grad), None


def _from_probabilities(
    logits: Tensor, target: Tensor, gamma: float, alpha: Tensor | None, label_smoothing: float
) -> Tensor:
    weight = target * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    if alpha is not None:
        weight = weight * alpha.reshape([-1 if dim == 1 else 1 for dim in range(logits.ndim)])
    # Only the top class can have p > 1/2, where log(1 - p) must come from the other classes; log1p(-p) serves the rest.
    top = logits.argmax(1, keepdim=True)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, True)
    others = logits.masked_fill(is_top, float("-inf")).logsumexp(1, keepdim=True)
    margin = logits.gather(1, top) - others
    log_p = logits - others - F.softplus(margin)
    miss_rest = torch.log1p(-torch.where(is_top, 0.0, log_p.exp()))
    losses = torch.where(
        is_top,
        F.softplus(-margin) * torch.exp(-gamma * F.softplus(margin)),
        -torch.where(is_top, 0.0, log_p) * torch.exp(gamma * miss_rest),
    )
    return (weight * losses).sum(1)


class FocalLoss(nn.Module):
    """Module form of :func:`focal_loss`; ``alpha`` is a list of one non-negative number per class.

    Shapes: ``logits [N, C, *]``; ``target [N, *]`` (class indices), or probabilities shaped like ``logits``; to
    ``[]``, or ``[N, *]`` unreduced.
    Unit: nats. Computed in float32 or better; finite with finite gradients for finite logits.
    Law: ``gamma=0`` is the cross-entropy.
    Source: Lin et al. 2017, arXiv:1708.02002.

    Raises:
        ValueError: as :func:`focal_loss`; an ``alpha`` that is negative or not one number per class.

    >>> FocalLoss(gamma=2.0, alpha=[1.0, 0.5])(torch.zeros(1, 2), torch.tensor([1]))  # 0.5 * 0.25 * ln 2
    tensor(0.0866)
    """

    alpha: Tensor | None

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check(gamma, label_smoothing, reduction)
        if alpha is not None:
            alpha = torch.as_tensor(alpha, dtype=torch.get_default_dtype())
            require(alpha.ndim == 1 and bool((alpha >= 0).all()), "alpha", alpha, "one non-negative number per class")
        self.register_buffer("alpha", alpha)
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return focal_loss(
            logits,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    @torch.no_grad()
    def minimum(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the lowest value that any logits could reach on this target, as shaped by ``reduction``.

        0 for plain indices; smoothed or soft targets leave something over, found by a search.

        >>> FocalLoss(gamma=0.0, label_smoothing=0.1).minimum(torch.zeros(1, 10), torch.tensor([3]))
        tensor(0.5003)
        """
        num_classes = logits.shape[1]
        counts = None
        weight = target
        if _takes_indices(logits, target):
            counts = target != self.ignore_index
            weight = F.one_hot(torch.where(counts, target, 0).long(), num_classes).movedim(-1, 1)
        weight = weight.movedim(1, -1).double() * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        if self.alpha is not None:
            weight = weight * self.alpha
        floors = lowest_focal(weight.reshape(-1, num_classes), self.gamma).reshape(weight.shape[:-1])
        floors = floors.to(widen(logits).dtype)
        if counts is None:
            return reduce(floors, self.reduction)
        return reduce(torch.where(counts, floors, 0.0), self.reduction, counts.sum())

    def extra_repr(self) -> str:
        return (
            f"gamma={self.gamma}, alpha={None if self.alpha is None else self.alpha.tolist()}, "
            f"label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        )
