"""Cross-entropy of sequences of tokens: the mean is over the tokens that count."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction
from firstlight._require import require
from firstlight.losses._cross_entropy import best_logits, cross_entropy_loss
from firstlight.losses._token_targets import check_token_options, valid_tokens


def sequence_cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy of every token of a batch of sequences, averaged over the tokens that count.

    The vocabulary is the last dimension, as models give it. ``z_loss`` keeps logits from drifting.

    Shapes: ``logits [N, T, V]`` (or ``[..., V]``), ``target [N, T]`` (``[...]``); to ``[]``, or ``[N, T]`` unreduced.
    Unit: nats a token. Computed in float32 or better, whatever the dtype of the logits.
    Law: a token costs ``cross_entropy + z_loss * logsumexp(logits)**2``; the mean divides by the number of targets that
    are not ``ignore_index``, so long and short sequences weigh by their tokens, and padding weighs nothing; where no
    target counts the loss is 0 with zero gradients.
    Source: z-loss, Chowdhery et al. 2022, arXiv:2204.02311; label smoothing, Szegedy et al. 2016, arXiv:1512.00567.

    Raises:
        ValueError: shapes that do not fit, options out of range, on the CPU also targets outside the vocabulary.

    >>> sequence_cross_entropy_loss(torch.zeros(1, 3, 4), torch.tensor([[1, 2, -100]]))  # ln 4
    tensor(1.3863)
    """
    check_reduction(reduction)
    check_token_options(label_smoothing, z_loss)
    _check_shapes(logits, target)
    valid, _ = valid_tokens(target, logits.shape[-1], ignore_index)
    flat, targets = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
    loss = cross_entropy_loss(
        flat, targets, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    if reduction == "none":
        loss = loss.reshape(target.shape)
    if not z_loss:
        return loss
    with torch.autocast(logits.device.type, enabled=False):
        log_sums = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1)
        extra = z_loss * log_sums.square().where(valid, 0.0)
    if reduction == "none":
        return loss + extra
    return loss + (extra.sum() if reduction == "sum" else extra.sum() / valid.sum().clamp(min=1))


def _check_shapes(logits: Tensor, target: Tensor) -> None:
    require(
        logits.ndim >= 1 and target.shape == logits.shape[:-1],
        "target",
        tuple(target.shape),
        f"of the shape of the logits without their last dimension (the vocabulary), {tuple(logits.shape[:-1])}",
    )


class SequenceCrossEntropyLoss(nn.Module):
    """Module form of :func:`sequence_cross_entropy_loss`: cross-entropy a token, padding left out.

    Shapes: ``logits [N, T, V]``, ``target [N, T]``; to ``[]``, or ``[N, T]`` unreduced.
    Unit: nats a token.
    Law: a token costs ``cross_entropy + z_loss * logsumexp(logits)**2``; the mean is over targets that count.
    Source: z-loss, Chowdhery et al. 2022, arXiv:2204.02311.

    Raises:
        ValueError: options out of range; when called, shapes that do not fit.

    >>> SequenceCrossEntropyLoss(ignore_index=0)(torch.zeros(1, 3, 4), torch.tensor([[1, 2, 0]]))  # ln 4
    tensor(1.3863)
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        check_token_options(label_smoothing, z_loss)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return sequence_cross_entropy_loss(
            logits,
            target,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )

    @torch.no_grad()
    def minimum(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the lowest value that any logits could reach on this target: the entropy of the smoothed target.

        >>> SequenceCrossEntropyLoss(label_smoothing=0.1).minimum(torch.zeros(1, 1, 10), torch.tensor([[3]]))
        tensor(0.5003)
        """
        _check_shapes(logits, target)
        flat, targets = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
        best = best_logits(flat, targets, None, self.ignore_index, self.label_smoothing)
        # These are log-probabilities but for classes left out at -1e4, so their logsumexp, and the z-loss, is 0.
        return self.forward(best.reshape(logits.shape), target)
