"""``explain``: what a check asks, what it is based on, and where it is known to be wrong."""

from __future__ import annotations

import difflib
import inspect
import re

from firstlight.checks import CHECKS, Check
from firstlight.cli._errors import UsageError


def explained(word: str) -> str:
    """Return rule, evidence and known false alarms of a check, given by code or name.

    Raises:
        UsageError: there is no such check.
    """
    for check in CHECKS:
        if word.upper() == check.code or word.lower() == check.name:
            return _page(check)
    near = _near(word.upper()) or difflib.get_close_matches(word.lower(), [check.name for check in CHECKS])
    guess = f"; near it: {', '.join(near)}" if near else ""
    raise UsageError(f"{word!r} is no code of a check{guess}", "firstlight explain lists them all")


def _near(code: str) -> list[str]:
    """Return the codes of the same group that are nearest by number.

    >>> _near("FL399")
    ['FL307', 'FL306', 'FL305']
    """
    if re.fullmatch(r"FL\d{3}", code) is None:
        return []
    group = [check.code for check in CHECKS if check.code[2] == code[2]]
    return sorted(group, key=lambda known: abs(int(known[2:]) - int(code[2:])))[:3]


def _page(check: Check) -> str:
    head = f"{check.code} {check.name}: {check.title}"
    body = inspect.cleandoc(type(check).__doc__ or "")
    return "\n".join([head, "=" * len(head), "", body, *(("", f"Why: {check.why}") if check.why else ())])


def listed() -> str:
    """Return code, name and title of every check."""
    return "\n".join(f"{check.code}  {check.name:22}{check.title}" for check in CHECKS)
