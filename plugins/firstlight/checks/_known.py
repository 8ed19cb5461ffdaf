"""Every check by its code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from firstlight.checks._check import Check


def known_checks() -> dict[str, Check]:
    """Return every check that firstlight brings by its code, in the order of the codes.

    >>> known_checks()["FL302"].name
    'softmax_twice'
    """
    ours = (
        kind for kind in _below(Check) if kind.__module__.startswith("firstlight.") and not inspect.isabstract(kind)
    )
    return {kind.code: kind() for kind in sorted(ours, key=lambda kind: kind.code)}


def _below(kind: type[Check]) -> Iterator[type[Check]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
