"""The tensors in a batch, and how many samples it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in a batch, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, (list, tuple)) else []


def size_of(batch: Any) -> int | None:
    """Return the number of samples of a batch: the length of its first tensor that has one."""
    return next((len(tensor) for tensor in tensors_of(batch) if tensor.ndim), None)
