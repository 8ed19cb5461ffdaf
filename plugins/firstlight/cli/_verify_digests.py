"""Fingerprints of whatever a training holds: equal bits, equal words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_DEEPEST = 8
_LONGEST = 40


def digest(value: Any) -> str:
    """Return one word for all that is in ``value``.

    >>> digest([torch.zeros(2), "a"]) == digest([torch.zeros(2), "a"]) != digest([torch.zeros(2), "b"])
    True
    """
    return _sha(repr([*digests(value, "").items()]).encode())


def digests(value: Any, name: str) -> dict[str, str]:
    """Return a word for each leaf of ``value``, by its path; of a number it is the number.

    >>> digests({"wait": 3, "best": torch.tensor(0.5)}, "EarlyStopping")
    {'EarlyStopping.wait': '3', 'EarlyStopping.best': '0.5'}
    """
    return {path: _word(leaf) for path, leaf in _leaves(value, name, 0)}


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    inner: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        inner = iter(value.items())
    elif isinstance(value, (list, tuple)):
        inner = iter(enumerate(value))
    elif isinstance(value, (set, frozenset)):
        inner = iter(enumerate(sorted(value, key=repr)))
    elif not (_is_leaf(value) or isinstance(value, type)) and hasattr(value, "__dict__"):
        inner = iter(vars(value).items())
    if inner is None or depth == _DEEPEST:  # deeper: it holds itself
        yield path, value
        return
    for key, part in inner:
        yield from _leaves(part, f"{path}.{key}" if path else str(key), depth + 1)


def _is_leaf(value: Any) -> bool:
    plain = value is None or isinstance(value, (bool, int, float, complex, str, bytes, Tensor))
    return plain or callable(value) or hasattr(value, "__array__")


def _word(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return _of_tensor(leaf)
    if hasattr(leaf, "__array__") and not callable(leaf):
        array = leaf.__array__()
        return f"{float(array)!r}" if array.ndim == 0 and array.dtype.kind == "f" else _sha(array.tobytes())
    if isinstance(leaf, (bytes, str)) and len(leaf) > _LONGEST:
        return _sha(leaf if isinstance(leaf, bytes) else leaf.encode())
    # The address of an object is no part of what it is.
    return repr(leaf) if _is_leaf(leaf) and not callable(leaf) else type(leaf).__qualname__


@torch.no_grad()
def _of_tensor(tensor: Tensor) -> str:
    whole: Any = tensor.detach()
    whole = whole.to_local() if hasattr(whole, "to_local") else whole  # of a shard: this rank's
    whole = whole if whole.layout is torch.strided else whole.to_dense()
    if whole.numel() == 1 and whole.dtype.is_floating_point:
        return repr(float(whole))
    host = whole.cpu().contiguous().reshape(-1).view(torch.uint8)
    return _sha(host.numpy(), f"{whole.dtype}{tuple(whole.shape)}")


def _sha(data: Any, more: str = "") -> str:
    found = hashlib.sha256(more.encode())
    found.update(data)
    return found.hexdigest()[:16]
