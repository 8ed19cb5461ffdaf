"""The report as plain text, at most 100 columns wide."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from firstlight.checks import Finding, Severity
from firstlight.preflight._words import (
    MOST_WARNINGS,
    against,
    clean,
    facts_of,
    groups_of,
    headline,
    last_line,
    not_made,
    open_findings,
    plural,
    reading_of,
    state_of,
    tally_of,
    tried,
    verdict_of,
)

if TYPE_CHECKING:
    from firstlight.preflight import CheckResult, PreflightReport

_WIDTH = 100
_LABEL = 14
_SIGNS = {"passed": "✓", "info": "i", "warning": "⚠", "error": "✗", "skipped": "–", "crashed": "!", "ignored": "~"}
_ASCII = {"passed": "+", "info": "i", "warning": "?", "error": "x", "skipped": "-", "crashed": "!", "ignored": "~"}
_COLORS = {
    "passed": 32,
    "info": 36,
    "warning": 33,
    "error": 31,
    "skipped": 2,
    "crashed": 35,
    "ignored": 2,
    "unfinished": 33,
}


def write_console(report: PreflightReport, file: TextIO, *, show_all: bool) -> None:
    """Write the report to a stream; in color if that is a terminal, in ASCII if it takes no more."""
    dumb = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    encoding = getattr(file, "encoding", None) or "utf-8"
    text = _Text(report, color=file.isatty() and not dumb, signs=_SIGNS if _can(encoding) else _ASCII)
    lines = "\n".join(text.lines(show_all=show_all)) + "\n"
    file.write(lines.encode(encoding, "replace").decode(encoding))


def _can(encoding: str) -> bool:
    try:
        "".join(_SIGNS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class _Text:
    def __init__(self, report: PreflightReport, *, color: bool, signs: dict[str, str]) -> None:
        self.report, self.color, self.signs = report, color, signs

    def lines(self, *, show_all: bool) -> list[str]:
        """Return all lines."""
        word, sentence = verdict_of(self.report)
        head = textwrap.wrap(f"{word.upper()}: {sentence}", _WIDTH)
        found = [self._painted(line, word) for line in head]
        found += textwrap.wrap(tally_of(self.report), _WIDTH)
        found += textwrap.wrap(", ".join(f"{key} {value}" for key, value in facts_of(self.report)), _WIDTH)
        for group, results in groups_of(self.report).items():
            found += ["", group.capitalize(), *(self._row(result) for result in results)]
        return [*found, *self._diagnosis(show_all), *self._left_out()]

    def _painted(self, text: str, state: str) -> str:
        return f"\x1b[{_COLORS[state]}m{text}\x1b[0m" if self.color else text

    def _sign(self, state: str) -> str:
        return self._painted(self.signs[state], state)

    def _row(self, result: CheckResult) -> str:
        state = state_of(self.report, result)
        found = open_findings(self.report, result)
        if found:
            said = against(found[0]) + (f" at {clean(found[0].where)}" if found[0].where else "")
            said = f"{said or clean(found[0].message)}" + (f", and {len(found) - 1} more" if len(found) > 1 else "")
        elif state == "passed":
            said = f"{clean(result.title):38}{reading_of(self.report, result)}".rstrip()
        else:
            said = {"skipped": "not made", "crashed": "the check failed itself"}.get(state, state)
        text = f" {result.code} {clean(result.name):22}{said}"
        return f"  {self._sign(state)}{_cut(text)}"

    def _diagnosis(self, show_all: bool) -> list[str]:
        diagnosis = self.report.diagnosis
        found: list[str] = []
        if diagnosis.root is not None:
            found += ["", "Diagnosis", *self._finding(diagnosis.root)]
        if diagnosis.symptoms and show_all:
            found += ["", "Explained by it"]
            for symptom in diagnosis.symptoms:
                found += self._finding(symptom)
        elif diagnosis.symptoms:
            names = ", ".join(headline(symptom) for symptom in diagnosis.symptoms)
            found += _labelled("explains", names)
        others = [other for other in diagnosis.others if show_all or other.severity >= Severity.WARNING]
        shown = others if show_all else others[:MOST_WARNINGS]
        if shown:
            found += ["", "Beside it"]
        for other in shown:
            found += self._finding(other) if show_all else self._in_short(other)
        left = len(diagnosis.others) - len(shown)
        if left:
            found += ["", f"{plural(left, 'more finding')} with show_all=True or --all"]
        return found

    def _finding(self, finding: Finding) -> list[str]:
        said = [*self._head(finding)]
        for label, text in (
            ("measured", against(finding)),
            ("where", finding.where),
            ("why", finding.why),
            ("change", finding.advice),
            ("tried", tried(finding)),
        ):
            said += _labelled(label, clean(text)) if text else []
        return said

    def _in_short(self, finding: Finding) -> list[str]:
        return [*self._head(finding), *_labelled("change", clean(finding.advice))]

    def _head(self, finding: Finding) -> list[str]:
        lines = textwrap.wrap(f"{headline(finding)}: {clean(finding.message)}", _WIDTH - 6, subsequent_indent="  ")
        return [f"  {self._sign(str(finding.severity))} {lines[0]}", *(f"    {line}" for line in lines[1:])]

    def _left_out(self) -> list[str]:
        report = self.report
        found = _section("Ignored", ((headline(past.finding), clean(past.reason)) for past in report.ignored))
        found += _section("Suppressions", (("", clean(note)) for note in report.notes))
        found += _section("Not made", ((", ".join(codes), reason) for reason, codes in not_made(report).items()))
        found += _section("Failed themselves", ((code, last_line(trace)) for code, trace in report.crashed.items()))
        return found


def _labelled(label: str, text: str) -> list[str]:
    indent = " " * _LABEL
    return textwrap.wrap(text, _WIDTH, initial_indent=f"    {label}".ljust(_LABEL), subsequent_indent=indent)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    said = [
        line
        for head, text in rows
        for line in textwrap.wrap(
            f"{head}: {text}" if head else text, _WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    ]
    return ["", title, *said] if said else []


def _cut(text: str) -> str:
    most = _WIDTH - 3  # two columns and the sign stand before it
    return text.rstrip() if len(text) <= most else f"{text[: most - 3].rstrip()}..."
