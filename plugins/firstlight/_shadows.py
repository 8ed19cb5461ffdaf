"""Methods that a callback stands before while training runs, and takes away again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Shadows:
    """Instance attributes that hide methods of a module, until they are lifted.

    Callbacks start and end in the same order, so a shadow over a shadow is lifted last: each restores what lay below
    both, and nothing is left whichever comes first.

    >>> class Module:
    ...     def step(self): return "its own"
    >>> module, shadows = Module(), Shadows()
    >>> shadows.put(module, "step", lambda: "ours")
    >>> module.step()
    'ours'
    >>> shadows.lift()
    >>> module.step(), vars(module)
    ('its own', {})
    """

    def __init__(self) -> None:
        self._below: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        below = vars(owner).get(name, _ABSENT)
        below = getattr(below, "_firstlight_below", below)
        method._firstlight_below = below  # type: ignore[attr-defined]
        setattr(owner, name, method)
        self._below.append((owner, name, below))

    def lift(self) -> None:
        for owner, name, below in self._below:
            if below is _ABSENT:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, below)
        self._below = []
