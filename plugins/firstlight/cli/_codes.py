"""``explain``: what a check asks, what it is based on, and where it is known to be wrong."""

from __future__ import annotations

import difflib
import inspect
import re

from firstlight.checks import Check, known_checks
from firstlight.cli._errors import UsageError


def explained(word: str) -> str:
    """Return rule, evidence and known false alarms of a check, given by code or name.

    Raises:
        UsageError: there is no such check.
    """
    checks = known_checks().values()
    for check in checks:
        if word.upper() == check.code or word.lower() == check.name:
            return _page(check)
    near = _near(word.upper()) or difflib.get_close_matches(word.lower(), [check.name for check in checks])
    guess = f"; near it: {', '.join(near)}" if near else ""
    raise UsageError(f"{word!r} is no code of a check{guess}", "firstlight explain lists them all")


def _near(code: str) -> list[str]:
    """Return the codes of the same group that are nearest by number.

    >>> _near("FL100")
    ['FL101', 'FL102', 'FL103']
    """
    if re.fullmatch(r"FL\d{3}", code) is None:
        return []
    group = [known for known in known_checks() if known[2] == code[2]]
    return sorted(group, key=lambda known: abs(int(known[2:]) - int(code[2:])))[:3]


def _page(check: Check) -> str:
    head = f"{check.code} {check.name}: {check.title}"
    body = inspect.cleandoc(type(check).__doc__ or "")
    return "\n".join([head, "=" * len(head), "", body, *(("", f"Why: {check.why}") if check.why else ())])


def listed() -> str:
    """Return code, name and title of every check."""
    return "\n".join(f"{check.code}  {check.name:22}{check.title}" for check in known_checks().values())
