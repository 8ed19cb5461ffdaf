"""apply_suppressions: what is accepted does not count, and is not lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import date

from firstlight.checks import Finding, diagnose
from firstlight.preflight._report import PreflightReport
from firstlight.preflight._suppression import Ignored, Suppression


def apply_suppressions(
    report: PreflightReport, suppressions: Iterable[Suppression], *, today: date | None = None
) -> PreflightReport:
    """Return the report with accepted findings moved to ``ignored``, and the diagnosis of those that remain.

    A suppression that expired before ``today`` counts no more, and one that covers nothing is of no use any more:
    ``notes`` says so.
    """
    suppressions = list(suppressions)
    today = today or date.today()
    ignored: list[Ignored] = []
    remaining: list[Finding] = []
    notes: list[str] = []
    for finding in report.findings:
        covering = [entry for entry in suppressions if entry.covers(finding)]
        holding = [entry for entry in covering if entry.expires is None or entry.expires >= today]
        if holding:
            ignored.append(Ignored(finding, holding[0].reason, holding[0].source))
            continue
        remaining.append(finding)
        for entry in covering[:1]:
            place = f" at {finding.where}" if finding.where else ""
            notes.append(f"{finding.code}{place} counts again: accepted until {entry.expires} ({entry.reason})")
    for entry in suppressions:
        if not any(entry.covers(known) for known in (*report.findings, *(past.finding for past in report.ignored))):
            notes.append(f"{entry.code} is ignored in {entry.source or 'vain'}, but was not found")
    # The order of the report is by rank, which a report from a file does not hold.
    ranks: dict[str, int] = {}
    for finding in remaining:
        ranks.setdefault(finding.code, len(ranks))
    return replace(
        report,
        diagnosis=diagnose(remaining, ranks),
        ignored=(*report.ignored, *ignored),
        notes=(*report.notes, *notes),
    )
