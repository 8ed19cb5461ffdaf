"""Diagnosis: one root cause, and the symptoms that it explains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from firstlight.checks._check import Finding, Severity

_OF_THE_SPLIT = ("FL109", "FL110")


@dataclass(frozen=True)
class Diagnosis:
    """One root cause with its symptoms folded below it, and what stands beside them.

    ``root`` is ``None`` where nothing was found at or above a warning. ``symptoms`` are findings that the root
    explains; ``others`` are warnings and facts on their own.
    """

    root: Finding | None
    symptoms: tuple[Finding, ...] = ()
    others: tuple[Finding, ...] = ()


def diagnose(findings: Iterable[Finding], ranks: Mapping[str, int]) -> Diagnosis:
    """Choose the root: the worst severity first, then the lowest rank of its check; other errors are its symptoms.

    Findings about the environment (``FL0xx``) and about the split explain nothing of how a model learns, and are not
    explained by it: they come last among their like.

    >>> dead = Finding("FL204", Severity.ERROR, "net.2", 1.0, 0.95, "all units are dead", "lower the rate", name="dead")
    >>> big = Finding("FL102", Severity.ERROR, "input", 96.0, 10.0, "inputs are 96 wide", "standardize", name="scale")
    >>> diagnosis = diagnose([dead, big], {"FL102": 10, "FL204": 50})
    >>> diagnosis.root.name, [symptom.name for symptom in diagnosis.symptoms]
    ('scale', ['dead'])
    """
    ordered = sorted(
        findings, key=lambda found: (-found.severity, _stands_alone(found), ranks.get(found.code, 1000), found.code)
    )
    if not ordered or ordered[0].severity < Severity.WARNING:
        return Diagnosis(None, (), tuple(ordered))
    root, rest = ordered[0], ordered[1:]
    symptoms: tuple[Finding, ...] = ()
    if root.severity == Severity.ERROR and not _stands_alone(root):
        symptoms = tuple(found for found in rest if found.severity == Severity.ERROR and not _stands_alone(found))
    return Diagnosis(root, symptoms, tuple(found for found in rest if found not in symptoms))


def _stands_alone(found: Finding) -> bool:
    return found.code.startswith("FL0") or found.code in _OF_THE_SPLIT
