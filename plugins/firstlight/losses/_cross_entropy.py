"""Cross-entropy: torch's, with one rule for the denominator and none of its NaNs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction
from firstlight._require import require


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy between ``softmax(logits)`` and the target distribution.

    Shapes: ``logits [N, C, *]`` or ``[C]``; ``target [N, *]`` or ``[]`` (class indices), or probabilities shaped like
    ``logits``; to ``[]``, or ``[N, *]`` unreduced.
    Unit: nats. Computed in float32 or better, whatever the dtype of the logits.
    Law: equals :func:`torch.nn.functional.cross_entropy`, except where that is undefined or inconsistent: the mean is
    ``sum(losses) / sum(class weights of the targets that count)`` for indices *and* probabilities (torch divides the
    latter by N), and a batch in which nothing counts gives 0 with zero gradients (torch: NaN).
    Source: label smoothing, Szegedy et al. 2016, arXiv:1512.00567.

    Raises:
        ValueError: shapes that do not fit, an unknown reduction, smoothing outside [0, 1].

    >>> cross_entropy_loss(torch.zeros(2, 4), torch.tensor([1, -100]))  # ln 4
    tensor(1.3863)
    """
    check_reduction(reduction)
    require(0.0 <= label_smoothing <= 1.0, "label_smoothing", label_smoothing, "between 0 and 1")
    by_index = _takes_indices(logits, target)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if weight is not None:
        weight = weight.to(logits.dtype)
    if by_index:
        losses, share = _from_indices(logits, target, weight, ignore_index, reduction, label_smoothing)
    else:
        losses, share = _from_probabilities(logits, target.to(logits.dtype), weight, reduction, label_smoothing)
    if reduction != "mean":
        return losses
    return losses / torch.where(share > 0, share, torch.ones_like(share))


def _takes_indices(logits: Tensor, target: Tensor) -> bool:
    """Whether ``target`` holds class indices; raise if its shape fits neither kind."""
    class_dim = 0 if logits.ndim <= 1 else 1
    index_shape = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    by_index = target.shape == index_shape and not target.is_floating_point()
    by_probability = target.shape == logits.shape and target.is_floating_point()
    if not (logits.ndim and (by_index or by_probability)):
        raise ValueError(
            f"target must be class indices of shape {tuple(index_shape)} or floating-point probabilities of shape "
            f"{tuple(logits.shape)} for logits of shape {tuple(logits.shape)}; got {target.dtype} of shape "
            f"{tuple(target.shape)}"
        )
    return by_index


def _from_indices(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    kind = "none" if reduction == "none" else "sum"
    options = {"ignore_index": ignore_index, "reduction": kind, "label_smoothing": smoothing}
    try:
        losses = F.cross_entropy(logits, target.long(), weight, **options)  # type: ignore[arg-type]
    except IndexError as error:  # on the CPU; on CUDA a label out of range ends the process, and a check would wait
        counted, classes = target[target != ignore_index], logits.shape[min(1, logits.ndim - 1)]
        found = f"{int(counted.min())} to {int(counted.max())}"
        raise ValueError(f"labels must be 0 to {classes - 1}, for {classes} logits; they go from {found}") from error
    counts = target != ignore_index
    if weight is None:
        return losses, counts.sum()
    return losses, (weight[torch.where(counts, target, 0).long()] * counts).sum()


def _from_probabilities(
    logits: Tensor, target: Tensor, weight: Tensor | None, reduction: Reduction, smoothing: float
) -> tuple[Tensor, Tensor]:
    class_dim = 0 if logits.ndim == 1 else 1
    num_classes = logits.shape[class_dim]
    smooth = target * (1 - smoothing) + smoothing / num_classes if smoothing else target
    scale: Tensor | float = 1.0
    if weight is not None:
        scale = weight.reshape([-1 if dim == class_dim else 1 for dim in range(logits.ndim)])
    log_p = F.log_softmax(logits, class_dim)
    # 0 * log 0 = 0: a class masked with -inf and never asked for costs nothing.
    losses = -torch.where(smooth == 0, 0.0, scale * smooth * log_p).sum(class_dim)
    # Without weights torch counts rows; probabilities that sum to less than 1 must not change that.
    share = losses.new_full((), losses.numel()) if weight is None else (scale * target).sum()
    return (losses if reduction == "none" else losses.sum()), share.detach()


class CrossEntropyLoss(nn.Module):
    """Module form of :func:`cross_entropy_loss`; takes the arguments of :class:`torch.nn.CrossEntropyLoss`.

    ``weight`` may be a tensor or a list of one non-negative number per class.

    Shapes: ``logits [N, C, *]`` or ``[C]``; ``target [N, *]`` or ``[]`` (class indices), or probabilities shaped like
    ``logits``; to ``[]``, or ``[N, *]`` unreduced.
    Unit: nats. Computed in float32 or better.
    Law: the mean divides by the class weights of the targets that count; over none of them it is 0.
    Source: label smoothing, Szegedy et al. 2016, arXiv:1512.00567.

    Raises:
        ValueError: as :func:`cross_entropy_loss`; weights that are negative or not one number per class.

    >>> CrossEntropyLoss(weight=[1.0, 3.0])(torch.zeros(2, 2), torch.tensor([0, 1]))  # ln 2, whatever the weights
    tensor(0.6931)
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Sequence[float] | Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        require(0.0 <= label_smoothing <= 1.0, "label_smoothing", label_smoothing, "between 0 and 1")
        if weight is not None and not isinstance(weight, Tensor):
            weight = torch.tensor(weight, dtype=torch.get_default_dtype())
        if weight is not None:
            require(
                weight.ndim == 1 and bool((weight >= 0).all()),
                "weight",
                weight,
                "one non-negative number per class",
            )
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy_loss(
            logits,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    @torch.no_grad()
    def minimum(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the lowest value that any logits could reach on this target, as shaped by ``reduction``.

        It is the (weighted) entropy of the smoothed target: 0 for plain indices, 0.5003 for ten classes at
        ``label_smoothing=0.1``. What a perfect model leaves over is ``loss - minimum``.

        >>> loss = CrossEntropyLoss(label_smoothing=0.1)
        >>> loss.minimum(torch.zeros(1, 10), torch.tensor([3]))
        tensor(0.5003)
        """
        weight, ignore_index, smoothing = self.weight, self.ignore_index, self.label_smoothing
        return self.forward(best_logits(logits, target, weight, ignore_index, smoothing), target)


def best_logits(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> Tensor:
    """Return the logits, shaped like ``logits``, at which cross-entropy on ``target`` is lowest.

    With class weights the loss is a cross-entropy against ``weight * target``; it is lowest at the distribution
    proportional to that product.
    """
    class_dim = 0 if logits.ndim == 1 else 1
    num_classes = logits.shape[class_dim]
    if _takes_indices(logits, target):
        valid = torch.where(target == ignore_index, 0, target).long()
        target = F.one_hot(valid, num_classes).movedim(-1, class_dim)
    mass = target.to(torch.promote_types(logits.dtype, torch.float32)) * (1 - label_smoothing)
    mass = mass + label_smoothing / num_classes
    if weight is not None:
        mass = mass * weight.to(mass.dtype).reshape([-1 if d == class_dim else 1 for d in range(logits.ndim)])
    best = mass / mass.sum(class_dim, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
    # Far below every finite logarithm, and still finite when a loss multiplies it by a probability of 0.
    return torch.where(best > 0, best.log(), -1e4)
