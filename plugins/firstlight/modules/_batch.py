"""What a batch holds: its input, its target if it has one, and how many samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from firstlight import _batch
from firstlight._require import require


def input_and_target(batch: Any) -> tuple[Any, Any]:
    """Return the input of a batch and its target: of a tensor, ``(input, target, ...)`` or a mapping; else ``None``."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping) and "input" in batch:
        return batch["input"], batch.get("target")
    ok = isinstance(batch, (tuple, list)) and len(batch) > 0
    found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    expected = "a tensor, (input, ...) or a mapping with 'input'"
    require(ok, "batch", found, expected, error=TypeError)
    return batch[0], batch[1] if len(batch) > 1 else None


def size_of(batch: Any) -> int:
    """Return the number of samples in ``batch``: the length of the first tensor in it."""
    size = _batch.size_of(batch)
    if size is None:
        raise ValueError(f"cannot tell the size of a batch of {type(batch).__name__}; override batch_size(batch)")
    return size
