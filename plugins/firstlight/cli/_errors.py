"""Mistakes of the caller, in a few lines: which key, what was given, what is expected."""

from __future__ import annotations

from collections.abc import Iterable

from firstlight._require import did_you_mean

_MOST_LINES = 10
_WIDEST = 300


class UsageError(Exception):
    """A mistake in the command line or a configuration file; ends the program with ``code``."""

    code = 2

    def __init__(self, problem: str, *details: str) -> None:
        lines = [problem, *(f"  {line}" for detail in details for line in detail.splitlines() if line.strip())]
        lines = [line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…" for line in lines]
        super().__init__("\n".join(lines[:_MOST_LINES]))


class FailedRun(UsageError):  # noqa: N818  it is no mistake of the caller's
    """What this machine could not do for a run, told as briefly; the code is sysexits' "input/output error"."""

    code = 74


def nearest(word: str, known: Iterable[str]) -> str:
    """Like ``did_you_mean``, blind to upper and lower case.

    >>> nearest("sgd", ["SGD", "Adam"])
    "; did you mean 'SGD'?"
    """
    as_written = {name.lower(): name for name in known}
    if word.lower() in as_written:
        return f"; did you mean {as_written[word.lower()]!r}?"
    found = did_you_mean(word.lower(), as_written)
    return found and f"; did you mean {as_written[found.split(chr(39))[1]]!r}?"
