"""CTC: torch's, with its inputs checked and its mean over the samples that have a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction
from firstlight._require import require

Lengths = Tensor | Sequence[int] | int
_HALF = (torch.float16, torch.bfloat16)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    *,
    blank: int = 0,
    reduction: Reduction = "mean",
    drop_infeasible: bool = True,
    validate: bool = True,
) -> Tensor:
    """Negative log-probability of all alignments of the target with the frames.

    A target with fewer frames than labels, plus one between equal neighbors, has no alignment: its loss is infinite and
    its gradient NaN. With ``drop_infeasible`` it costs nothing *and leaves the mean*, which torch's ``zero_infinity``
    keeps it in. Without, the loss is torch's.

    Torch reads the lengths on the host, so on a GPU this loss waits for the device whatever is done here. ``validate``
    reads two further flags: whether ``log_probs`` are logarithms of probabilities (raw logits give plausible numbers
    and wrong gradients), and whether the targets are labels (torch would read past the end of memory).

    Shapes: ``log_probs [T, N, C]``, ``targets [N, S]`` or all labels in one row, ``input_lengths [N]``,
    ``target_lengths [N]``; without a batch ``[T, C]``, ``[S]``, ``[]``, ``[]``; to ``[]``, or ``[N]`` unreduced.
    Unit: nats a sample; the mean divides each by its number of labels first, as torch does: nats a label.
    Law: equals :func:`torch.nn.functional.ctc_loss` where every target can be aligned; where none can, 0 with zero
    gradients.
    Source: Graves et al. 2006, doi:10.1145/1143844.1143891.

    Raises:
        ValueError: shapes or lengths that do not fit; raw logits; labels that are blank or out of range.

    >>> log_probs = torch.zeros(4, 1, 3).log_softmax(-1)
    >>> ctc_loss(log_probs, torch.tensor([[1, 2]]), [4], [2], reduction="sum")
    tensor(1.6864)
    """
    check_reduction(reduction)
    alone = log_probs.ndim == 2
    if alone:
        log_probs, targets = log_probs[:, None], targets.reshape(1, -1)
    require(log_probs.ndim == 3, "log_probs", tuple(log_probs.shape), "of shape [T, N, C] (or [T, C])")
    frames, num, num_classes = log_probs.shape
    _check_blank(blank, num_classes)
    inputs = _lengths("input_lengths", input_lengths, num, frames)
    labels = _lengths("target_lengths", target_lengths, num, targets.shape[-1])
    targets = _padded(targets, labels).to(log_probs.device, torch.long)
    within = torch.arange(targets.shape[1], device=targets.device) < labels.to(targets.device)[:, None]
    if validate:
        _refuse_wrong_labels(targets, within, blank, num_classes)
        _refuse_logits(log_probs, inputs)
    if log_probs.dtype in _HALF:
        log_probs = log_probs.float()
    losses = F.ctc_loss(log_probs, targets, inputs, labels, blank, "none", zero_infinity=drop_infeasible)
    feasible = torch.ones_like(losses, dtype=torch.bool)
    if drop_infeasible:
        equal_neighbors = (targets[:, 1:] == targets[:, :-1]) & within[:, 1:]
        feasible = (within.sum(1) + equal_neighbors.sum(1)).to(losses.device) <= inputs.to(losses.device)
        losses = losses.where(feasible, 0.0)
    if reduction == "none":
        return losses[0] if alone else losses
    if reduction == "sum":
        return losses.sum()
    return (losses / labels.to(losses).clamp(min=1)).sum() / feasible.sum().clamp(min=1)


def _check_blank(blank: int, num_classes: int | None = None) -> None:
    ok = blank >= 0 and (num_classes is None or blank < num_classes)
    require(ok, "blank", blank, "a class" if num_classes is None else f"a class: between 0 and {num_classes - 1}")


def _lengths(name: str, lengths: Lengths, num: int, most: int) -> Tensor:
    found = torch.as_tensor(lengths, dtype=torch.long, device="cpu").reshape(-1)
    require(len(found) == num, name, f"{len(found)} lengths", f"one length per sample, {num}")
    wrong = (found < 0) | (found > most)
    require(not wrong.any(), name, found[wrong].tolist(), f"between 0 and {most}")
    return found


def _padded(targets: Tensor, lengths: Tensor) -> Tensor:
    """Return targets as [N, S], also where they are given in one row."""
    if targets.ndim == 2:
        require(len(targets) == len(lengths), "targets", tuple(targets.shape), f"of shape [{len(lengths)}, S] or [sum]")
        return targets
    total = int(lengths.sum())
    require(targets.shape == (total,), "targets", tuple(targets.shape), f"of shape [N, S], or ({total},) in one row")
    return nn.utils.rnn.pad_sequence(list(torch.split(targets, lengths.tolist())), batch_first=True)


def _refuse_wrong_labels(targets: Tensor, within: Tensor, blank: int, num_classes: int) -> None:
    wrong = within & ((targets < 0) | (targets >= num_classes) | (targets == blank))
    if bool(wrong.any()):
        expected = f"labels between 0 and {num_classes - 1} other than blank={blank}"
        require(False, "targets", targets[wrong][:5].tolist(), expected)


def _refuse_logits(log_probs: Tensor, lengths: Tensor) -> None:
    used = torch.arange(len(log_probs))[:, None] < lengths
    totals = log_probs.detach().float().logsumexp(-1).where(used.to(log_probs.device), 0.0)
    tolerance = 0.2 if log_probs.dtype in _HALF else 1e-2  # 16-bit logarithms are that coarse
    if bool((totals.abs() > tolerance).any()):
        worst = round(float(totals.flatten()[totals.abs().argmax()]), 3)
        require(
            False,
            "log_probs",
            f"logsumexp(log_probs, -1) = {worst}",
            "logarithms of probabilities, whose logsumexp is 0: call .log_softmax(-1) on the logits",
        )


def best_path(
    log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, blank: int
) -> Tensor:
    """Return ``log_probs`` that give one alignment of each target all the probability there is."""
    alone = log_probs.ndim == 2
    batched = log_probs[:, None] if alone else log_probs
    frames, num, _ = batched.shape
    inputs = _lengths("input_lengths", input_lengths, num, frames)
    labels = _lengths("target_lengths", target_lengths, num, targets.shape[-1])
    rows = _padded(targets.reshape(1, -1) if alone else targets, labels).tolist()
    best = torch.full_like(batched, -1e4)
    for sample, (row, length, end) in enumerate(zip(rows, labels.tolist(), inputs.tolist(), strict=True)):
        path: list[int] = []
        for label in row[:length]:
            path += [blank, label] if path and path[-1] == label else [label]
        path += [blank] * (end - len(path))
        best[range(end), sample, path[:end]] = 0.0
    return best[:, 0] if alone else best


class CTCLoss(nn.Module):
    """Module form of :func:`ctc_loss`; called as :class:`torch.nn.CTCLoss` is.

    Shapes: ``log_probs [T, N, C]``, ``targets [N, S]`` or in one row, ``input_lengths [N]``, ``target_lengths [N]``; to
    ``[]``, or ``[N]`` unreduced.
    Unit: nats a label for the mean, nats a sample otherwise.
    Law: equals torch's where every target can be aligned; others leave the mean.
    Source: Graves et al. 2006, doi:10.1145/1143844.1143891.

    Raises:
        ValueError: options out of range; when called, wrong shapes or lengths, raw logits, labels that are none.

    >>> loss = CTCLoss()  # the first target has no alignment: its two equal labels need three frames
    >>> loss(torch.zeros(2, 2, 3).log_softmax(-1), torch.tensor([[1, 1], [1, 2]]), [2, 2], [2, 2])  # ln 3
    tensor(1.0986)
    """

    def __init__(
        self,
        *,
        blank: int = 0,
        reduction: Reduction = "mean",
        drop_infeasible: bool = True,
        validate: bool = True,
    ) -> None:
        super().__init__()
        _check_blank(blank)
        check_reduction(reduction)
        self.blank = blank
        self.reduction = reduction
        self.drop_infeasible = drop_infeasible
        self.validate = validate

    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths) -> Tensor:
        return ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            blank=self.blank,
            reduction=self.reduction,
            drop_infeasible=self.drop_infeasible,
            validate=self.validate,
        )

    @torch.no_grad()
    def minimum(self, log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths) -> Tensor:
        """Return the value where one alignment of each target is certain: 0, and infinity if there is none.

        >>> CTCLoss().minimum(torch.zeros(2, 1, 3).log_softmax(-1), torch.tensor([[1, 2]]), [2], [2])
        tensor(0.)
        """
        best = best_path(log_probs, targets, input_lengths, target_lengths, self.blank)
        return self.forward(best, targets, input_lengths, target_lengths)
