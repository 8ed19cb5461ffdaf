"""The parts of a model's output, each under a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(output: Any) -> dict[str, Any]:
    """Return the parts of a nested output by name; parts that are None are left out.

    A list is a part of its own, such as the texts of a batch, unless it holds tensors or further containers of them.

    >>> list(leaves({"mean": 1, "views": (2, 3)}))
    ['mean', 'views_0', 'views_1']
    >>> leaves(["one", "two"])
    {'output': ['one', 'two']}
    """
    named: dict[str, Any] = {}
    for name, part in _walk(output, ""):
        while name in named:  # {"a_0": ..., "a": (...)}
            name += "_"
        named[name] = part
    return named


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _walk(part, f"{name}_{key}" if name else str(key))
    elif isinstance(value, tuple) or (isinstance(value, list) and _holds_tensors(value)):
        for position, part in enumerate(value):
            yield from _walk(part, f"{name or 'output'}_{position}")
    elif value is not None:
        yield name or "output", value


def _holds_tensors(values: list[Any]) -> bool:
    return any(isinstance(value, (Tensor, Mapping, tuple)) for value in values)
