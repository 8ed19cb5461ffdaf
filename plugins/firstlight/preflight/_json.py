"""The report as JSON, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from firstlight._require import require
from firstlight.checks import Diagnosis, Finding, Severity
from firstlight.preflight._suppression import Ignored

if TYPE_CHECKING:
    from firstlight.preflight import PreflightReport

KIND = "firstlight.preflight"
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_json(report: PreflightReport, schema: int) -> str:
    """Return the whole report; NaN and infinities, which JSON has no words for, as strings."""
    diagnosis = report.diagnosis
    whole = {
        "kind": KIND,
        "schema": schema,
        "exit_code": report.exit_code,
        "seconds": report.seconds,
        "over_budget": report.over_budget,
        "environment": report.environment,
        "diagnosis": {
            "root": None if diagnosis.root is None else _finding(diagnosis.root),
            "symptoms": [_finding(found) for found in diagnosis.symptoms],
            "others": [_finding(found) for found in diagnosis.others],
        },
        "ignored": [
            {"finding": _finding(past.finding), "reason": past.reason, "source": past.source} for past in report.ignored
        ],
        "notes": report.notes,
        "results": [
            {
                "code": result.code,
                "name": result.name,
                "title": result.title,
                "group": result.group,
                "status": result.status,
                "findings": [_finding(found) for found in result.findings],
                "reason": result.reason,
                "traceback": result.traceback,
            }
            for result in report.results
        ],
        "readings": report.readings,
        "pictures": report.pictures,
    }
    return json.dumps(_plain(whole), indent=1, ensure_ascii=False, allow_nan=False)


def _finding(finding: Finding) -> dict[str, Any]:
    return asdict(finding) | {"severity": str(finding.severity)}


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: tensors and tuples as lists, what it does not know as its text."""
    if isinstance(value, float):
        value = float(value)  # numpy's are floats too
        return (
            value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        )
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def read_json(text: str, schema: int) -> PreflightReport:
    """Return the report that was written.

    Raises:
        ValueError: the text is no report, or one of a newer schema.
    """
    from firstlight.preflight import CheckResult, PreflightReport  # they call this file

    values = json.loads(text)
    is_report = isinstance(values, dict) and values.get("kind") == KIND
    require(is_report, "the JSON", f"{text[:40]}...", f"a report, with kind {KIND!r}")
    require(values["schema"] <= schema, "the schema of the report", values["schema"], f"{schema} or less")
    values = _numbers(values)
    diagnosis = values["diagnosis"]
    results = (dict(result) for result in values["results"])
    return PreflightReport(
        tuple(
            CheckResult(**{**result, "findings": tuple(map(_found, result["findings"]))})
            for result in results
            if result.pop("group")
        ),
        Diagnosis(
            diagnosis["root"] and _found(diagnosis["root"]),
            tuple(map(_found, diagnosis["symptoms"])),
            tuple(map(_found, diagnosis["others"])),
        ),
        values["readings"],
        values["pictures"],
        values["environment"],
        values["seconds"],
        values["over_budget"],
        tuple(Ignored(**{**past, "finding": _found(past["finding"])}) for past in values["ignored"]),
        tuple(values["notes"]),
    )


def _found(values: Mapping[str, Any]) -> Finding:
    return Finding(**{**values, "severity": Severity[values["severity"].upper()]})


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return _WORDS.get(value, value) if isinstance(value, str) else value
