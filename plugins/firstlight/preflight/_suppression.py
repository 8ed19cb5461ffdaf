"""Suppressions: findings that somebody has accepted, each with a reason."""

from __future__ import annotations

import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from firstlight._require import require
from firstlight.checks import Finding

_COMMENT = re.compile(r"#\s*firstlight:\s*ignore\b\s*(?:\[([^\]]*)\])?[ \t:,-]*(.*)")
_CODE = re.compile(r"FL\d{3}")
_DAYS = 90  # that a new baseline holds


@dataclass(frozen=True)
class Suppression:
    """A finding that is known and accepted: its code, why, where, and until when.

    ``where`` is that of the finding, ``None`` for any place; ``expires`` is the last day on which it holds; ``source``
    says where it was written down.

    Raises:
        ValueError: the code is none, or there is no reason.
    """

    code: str
    reason: str
    where: str | None = None
    expires: date | None = None
    source: str = ""

    def __post_init__(self) -> None:
        at = f" in {self.source}" if self.source else ""
        require(_CODE.fullmatch(self.code) is not None, f"the code to ignore{at}", self.code, "one such as FL204")
        require(bool(self.reason.strip()), f"the reason to ignore {self.code}{at}", self.reason, "given in a few words")

    def covers(self, finding: Finding) -> bool:
        """Whether this is about the finding, expired or not."""
        return finding.code == self.code and self.where in (None, finding.where)


@dataclass(frozen=True)
class Ignored:
    """A finding that was made and does not count, with the reason that was given."""

    finding: Finding
    reason: str
    source: str = ""


def comments_in(path: Path) -> list[Suppression]:
    """Return the ``# firstlight: ignore[FL204] reason`` comments of a Python or configuration file.

    Raises:
        ValueError: a comment without codes or without a reason.
    """
    found = []
    for line, comment in _comments(path):
        match = _COMMENT.match(comment)
        if match is not None:
            source = f"{path}:{line}"
            require(bool(match[1]), f"the comment in {source}", comment, "# firstlight: ignore[FL204] reason")
            found += [Suppression(code.strip(), match[2].strip(), source=source) for code in match[1].split(",")]
    return found


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        # Its tokens: the same words in a string are no comment.
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
        return
    for number, line in enumerate(text.splitlines(), 1):
        start = re.search(r"(?:^|\s)#", line)
        if start is not None:
            yield number, line[start.start() :].lstrip()


def source_of(thing: Any) -> Path | None:
    """Return the file in which the class of ``thing`` was written, if it can be read."""
    try:
        path = Path(inspect.getsourcefile(type(thing)) or "")
    except (TypeError, OSError):
        return None
    return path if path.is_file() else None


def read_baseline(path: Path) -> list[Suppression]:
    """Return the entries of a baseline file: JSON, a list of ``{code, where, reason, expires}``.

    Raises:
        ValueError: it is not such a list, or an entry has no reason.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        require(isinstance(entries, list), "it", type(entries).__name__, "a list of entries")
        return [_entry(entry, str(path)) for entry in entries]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no baseline: {error}") from error


def _entry(entry: Any, source: str) -> Suppression:
    keys = {"code", "where", "reason", "expires"}
    known = isinstance(entry, dict) and "code" in entry and set(entry) <= keys
    require(known, "an entry", entry, "{code, where, reason, expires}")
    expires = entry.get("expires")
    return Suppression(
        str(entry["code"]),
        str(entry.get("reason") or ""),
        entry.get("where"),
        date.fromisoformat(expires) if expires else None,
        source,
    )


def write_baseline(path: Path, findings: Iterable[Finding], kept: Iterable[Suppression], *, today: date) -> None:
    """Write findings as accepted for 90 days, beside the entries ``kept`` from before."""
    made = [
        Suppression(found.code, f"known on {today}", found.where, today + timedelta(days=_DAYS)) for found in findings
    ]
    entries = {
        (entry.code, entry.where): {
            "code": entry.code,
            "where": entry.where,
            "reason": entry.reason,
            "expires": entry.expires.isoformat() if entry.expires else None,
        }
        for entry in [*kept, *made]
    }
    path.write_text(json.dumps(list(entries.values()), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
