"""Every check by its code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from firstlight.checks._check import Check


def known_checks() -> dict[str, Check]:
    """Return every check that firstlight brings by its code, in the order of the codes.

    >>> known_checks()["FL302"].name
    'softmax_twice'
    """
    return {kind.code: kind() for kind in sorted(_below(Check), key=lambda kind: kind.code)}


# Any: to a type checker Check itself, which is abstract, is no type[Check].
def _below(kind: Any) -> Iterator[type[Check]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("firstlight.") and not inspect.isabstract(child):
            yield child
        yield from _below(child)
