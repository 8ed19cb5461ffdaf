"""A batch on disk, to be run again by whoever looks for a fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


def save_batch(path: Path, content: Mapping[str, Any]) -> str | None:
    """Write ``content`` so that ``torch.load(weights_only=True)`` reads it; what is not plain becomes its ``repr``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_plain(content), path)
    except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk
        rank_zero_warn(f"the batch could not be saved to {path}: {error}")
        return None
    return str(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or type(value) in (bool, int, float, str) else repr(value)
