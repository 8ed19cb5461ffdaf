"""What every form of the report says alike: the verdict, the state of a check, a number."""

from __future__ import annotations

import inspect
import math
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from firstlight.checks import Finding, Severity, known_checks

if TYPE_CHECKING:
    from firstlight.preflight import CheckResult, PreflightReport

_DOES = dict.fromkeys(("FL109", "FL110"), "be judged")  # it learns, and nobody knows what
MOST_WARNINGS = 3  # shown below the root cause


def clean(text: object) -> str:
    r"""Return text as one line, without control characters: names and labels come from anywhere.

    >>> clean("a\n  b\x1b[31m")
    'a b[31m'
    """
    plain = "".join(" " if c.isspace() else c for c in str(text) if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(plain.split())


def number(value: object) -> str:
    """Return a value as one reads it.

    >>> number(0.00012345678), number(96.0), number("0 to 9"), number(float("nan")), number(None)
    ('0.0001235', '96', '0 to 9', 'NaN', '')
    """
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else clean(value)


def against(finding: Finding) -> str:
    """Return the number of a finding against its threshold."""
    if finding.threshold is None:
        return number(finding.value)
    word = "expected" if isinstance(finding.threshold, str) else "limit"
    return f"{number(finding.value)} ({word} {number(finding.threshold)})".strip()


def headline(finding: Finding) -> str:
    """Return code, name and place of a finding."""
    place = f" at {clean(finding.where)}" if finding.where else ""
    return f"{finding.code} {clean(finding.name or 'finding')}{place}"


def tried(finding: Finding) -> str:
    """Say whether the advice was tried on a copy, and what came of it."""
    return clean(finding.tried) if finding.tried else "not tried on a copy"


def key_of(finding: Finding) -> tuple[str, str, str]:
    """Return what tells findings apart: their numbers may be NaN, which equals nothing."""
    return (finding.code, finding.where, finding.message)


def open_findings(report: PreflightReport, result: CheckResult) -> list[Finding]:
    """Return the findings of a check that are not ignored."""
    ignored = {key_of(past.finding) for past in report.ignored}
    return [finding for finding in result.findings if key_of(finding) not in ignored]


def state_of(report: PreflightReport, result: CheckResult) -> str:
    """Return the status of a check as it counts: "ignored" if all that it found is."""
    if not result.findings:
        return result.status
    found = open_findings(report, result)
    return str(max(finding.severity for finding in found)) if found else "ignored"


def reading_of(report: PreflightReport, result: CheckResult) -> str:
    """Return the first number that a check asked for, with its key."""
    check = known_checks().get(result.code)
    for key in check.needs if check is not None else ():
        value = report.readings.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f"{key} {number(value)}"
    return ""


def groups_of(report: PreflightReport) -> dict[str, list[CheckResult]]:
    """Return the checks by group, in the order of a training step."""
    groups: dict[str, list[CheckResult]] = {}
    for result in sorted(report.results, key=lambda result: result.code):
        groups.setdefault(result.group, []).append(result)
    return groups


def verdict_of(report: PreflightReport) -> tuple[str, str]:
    """Return a word ("error", "warning", "crashed", "unfinished" or "passed") and the sentence that explains it."""
    root = report.root
    if root is not None and root.severity >= Severity.ERROR:
        does = "run" if root.code.startswith("FL0") else _DOES.get(root.code, "learn")
        return "error", f"cannot {does} as written: {headline(root)}"
    if root is not None:
        count = sum(finding.severity == Severity.WARNING for finding in report.findings)
        return "warning", f"{plural(count, 'warning')}, first {headline(root)}"
    counts = Counter(state_of(report, result) for result in report.results)
    if counts["crashed"]:
        return "crashed", f"{plural(counts['crashed'], 'check')} failed; nothing else was found"
    if report.over_budget:
        return "unfinished", "nothing was found before the budget of time was spent"
    if report.ignored:
        return "passed", f"nothing was found beside {plural(len(report.ignored), 'finding')} that you ignore"
    return "passed", "nothing was found that would keep this set-up from learning"


def tally_of(report: PreflightReport) -> str:
    """Return how many checks came to what, and how long it took."""
    counts = Counter(state_of(report, result) for result in report.results)
    said = [plural(counts["error"], "error"), plural(counts["warning"], "warning"), f"{counts['passed']} passed"]
    said += [f"{counts[state]} {word}" for state, word in _OTHERS.items() if counts[state]]
    return f"{', '.join(said)}; {report.seconds:.1f} s"


_OTHERS = {"info": "with a fact to know", "ignored": "ignored", "skipped": "not made", "crashed": "failed themselves"}


def plural(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def facts_of(report: PreflightReport) -> list[tuple[str, str]]:
    """Return what the report knows of module, versions, seed."""
    return [(str(key).replace("_", " "), number(value)) for key, value in report.environment.items()]


def not_made(report: PreflightReport) -> dict[str, list[str]]:
    """Return codes of checks that were not made, by reason."""
    reasons: dict[str, list[str]] = {}
    for result in report.results:
        if result.status == "skipped":
            reasons.setdefault(clean(result.reason or "no reason given"), []).append(result.code)
    return reasons


def help_of(code: str) -> str:
    """Return the docstring of the check with this code: the rule, its evidence, its known false alarms."""
    check = known_checks().get(code)
    return inspect.cleandoc(type(check).__doc__ or "") if check is not None else ""


def last_line(traceback: str | None) -> str:
    """Return what a traceback ends with."""
    lines = (traceback or "").strip().splitlines()
    return clean(lines[-1]) if lines else "no traceback"
