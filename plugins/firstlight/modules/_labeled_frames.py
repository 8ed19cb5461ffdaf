"""Batches for CTC: frames and labels, each with its lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from firstlight._require import require


class LabeledFrames(NamedTuple):
    """A batch taken apart; ``input_lengths`` is ``None`` where all frames of all samples count."""

    inputs: Any
    targets: Tensor
    input_lengths: Tensor | None
    target_lengths: Tensor


def labeled_frames(batch: Any, *, blank: int) -> LabeledFrames:
    """Take ``batch`` apart; without target lengths, targets end where only blanks follow.

    Raises:
        TypeError: neither (inputs, targets), nor that with both lengths, nor a mapping of the same.
    """
    parts = batch
    if isinstance(batch, Mapping) and {"input", "target"} <= batch.keys():
        parts = [batch.get(key) for key in ("input", "target", "input_lengths", "target_lengths")]
    ok = isinstance(parts, (tuple, list)) and len(parts) in (2, 4)
    found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    expected = (
        "(inputs, targets), (inputs, targets, input_lengths, target_lengths) or a mapping with 'input' and 'target', "
        "and 'input_lengths' and 'target_lengths' where they differ"
    )
    require(ok, "batch", found, expected, error=TypeError)
    inputs, targets, input_lengths, target_lengths = [*parts, None, None][:4]
    ok = isinstance(targets, Tensor) and targets.ndim == 2
    require(ok, "targets", getattr(targets, "shape", targets), "a tensor of shape [N, S], padded", error=TypeError)
    if target_lengths is None:
        target_lengths = (targets != blank).sum(1)  # a blank before a label lies within, and the loss will name it
    if input_lengths is not None:
        input_lengths = torch.as_tensor(input_lengths)
    return LabeledFrames(inputs, targets, input_lengths, torch.as_tensor(target_lengths))
