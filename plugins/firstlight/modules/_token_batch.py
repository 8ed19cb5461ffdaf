"""Batches of tokens: what a language model reads and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from firstlight._require import require


def token_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Return input and target ``[N, T]``, as int64: to an unsigned byte the ignored index -100 would be 156.

    Raises:
        TypeError: neither tokens, nor (input, target), nor a mapping of both.
        ValueError: tokens alone, and fewer than two in a row.
    """
    parts = [batch] if isinstance(batch, Tensor) else batch
    if isinstance(batch, Mapping) and {"input", "target"} <= batch.keys():
        parts = [batch["input"], batch["target"]]
    ok = isinstance(parts, (tuple, list)) and len(parts) in (1, 2) and all(map(are_integers, parts))
    ok = ok and all(part.ndim == 2 and part.shape == parts[0].shape for part in parts)
    expected = "integer tokens [N, T], (input [N, T], target [N, T]) or a mapping with 'input' and 'target'"
    require(ok, "batch", _described(batch), expected, error=TypeError)
    tokens = [part.long() for part in parts]
    if len(tokens) == 2:
        return tokens[0], tokens[1]
    require(tokens[0].shape[1] >= 2, "batch", tuple(tokens[0].shape), "of two tokens or more in a row, to predict one")
    return tokens[0][:, :-1], tokens[0][:, 1:]


def are_integers(tokens: Any) -> bool:
    """Whether ``tokens`` is a tensor of integers."""
    if not isinstance(tokens, Tensor):
        return False
    return not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)


def _described(batch: Any) -> object:
    if isinstance(batch, Tensor):
        return f"{batch.dtype} {tuple(batch.shape)}"
    if isinstance(batch, (tuple, list)):
        return [_described(part) for part in batch]
    return sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
