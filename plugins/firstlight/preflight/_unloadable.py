"""What torch cannot save, or does not load back with ``weights_only=True``."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def unloadable(value: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield key, type and what failed ("saved" or "loaded") of the innermost parts of ``value`` that do not come back.

    >>> from pathlib import Path
    >>> list(unloadable({"lr": 0.1, "hparams": {"root": Path("data"), "widths": [1, 2]}}))
    [('hparams.root', 'pathlib.PosixPath', 'loaded')]
    """
    yield from _unloadable(_emptied(value), key)


def _unloadable(value: Any, key: str) -> Iterator[tuple[str, str, str]]:
    failed = _failed(value)
    if not failed:
        return
    below = f"{key}." if key else ""
    inner = [found for name, part in _parts(value) for found in _unloadable(part, f"{below}{name}")]
    kind = type(value)
    named = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    yield from inner or [(key, named, failed)]


def _failed(value: Any) -> str:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.save(value, file)
        except Exception:
            return "saved"
        file.seek(0)
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception:
            return "loaded"
    return ""


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _emptied(value: Any) -> Any:
    """Return the same with tensors of no elements: kinds are asked for, and bytes cost time."""
    if type(value) in (Tensor, nn.Parameter):
        return torch.empty(0, dtype=value.dtype)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _emptied(part)) for key, part in value.items())
    return type(value)(map(_emptied, value)) if type(value) in (list, tuple) else value
