"""The one shape of argument errors: what was given, what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def require(ok: bool, name: str, value: object, expected: str, *, error: type[Exception] = ValueError) -> None:
    """Raise ``error`` unless ``ok``: "<name> must be <expected>; got <value>".

    >>> require(0.1 > 0, "lr", 0.1, "above zero")
    >>> require(-1 > 0, "lr", -1, "above zero")
    Traceback (most recent call last):
        ...
    ValueError: lr must be above zero; got -1
    """
    if not ok:
        raise error(f"{name} must be {expected}; got {value!r}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or an empty string.

    >>> did_you_mean("warmpu", ["warmup", "floor"])
    "; did you mean 'warmup'?"
    """
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def said_by(error: BaseException) -> str:
    """Return the class of an exception and the first line of its message.

    >>> said_by(KeyError())
    'KeyError: '
    """
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Return a few of the names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
