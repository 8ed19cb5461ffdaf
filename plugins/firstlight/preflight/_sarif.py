"""The report as SARIF 2.1.0, which code hosts show beside the lines of a change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from firstlight import __version__
from firstlight.checks import Finding, Severity
from firstlight.preflight._words import against, clean, help_of, tried

if TYPE_CHECKING:
    from firstlight.preflight import PreflightReport

_LEVELS = {Severity.INFO: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}
_FILE_AND_LINE = re.compile(r"(.+\.\w+):(\d+)")


def write_sarif(report: PreflightReport) -> str:
    """Return one run of one tool; a check is a rule, with its docstring as help."""
    rules = {result.code: index for index, result in enumerate(report.results)}
    source = str(report.environment.get("source", ""))
    results = [_result(finding, rules, source) for finding in report.findings]
    for past in report.ignored:
        kind = "external" if past.source.endswith(".json") else "inSource"
        suppressed = {"suppressions": [{"kind": kind, "justification": past.reason}]}
        results.append(_result(past.finding, rules, source) | suppressed)
    run = {
        "tool": {
            "driver": {
                "name": "firstlight",
                "version": __version__,
                "rules": [_rule(result.code, result.name, result.title) for result in report.results],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not report.crashed,
                "exitCode": report.exit_code,
                "toolExecutionNotifications": [
                    {
                        "level": "error",
                        "associatedRule": {"id": code, "index": rules[code]},
                        "message": {"text": f"{code} failed itself:\n{traceback}"},
                    }
                    for code, traceback in report.crashed.items()
                ],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    whole = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(whole, indent=1, ensure_ascii=False)


def _rule(code: str, name: str, title: str) -> dict[str, Any]:
    text = help_of(code) or title
    return {
        "id": code,
        "name": name,
        "shortDescription": {"text": title},
        "fullDescription": {"text": text.split("\n\n")[0]},
        "help": {"text": text},
    }


def _result(finding: Finding, rules: dict[str, int], source: str) -> dict[str, Any]:
    said = [f"{clean(finding.message)}: {against(finding)}." if against(finding) else f"{clean(finding.message)}."]
    said += [f"{clean(finding.why)}"] if finding.why else []
    said += [f"Change: {clean(finding.advice)} ({tried(finding)})."]
    found = {
        "ruleId": finding.code,
        "level": _LEVELS[finding.severity],
        "message": {"text": " ".join(said)},
        "locations": [_location(finding.where, source)],
        "partialFingerprints": {"finding/v1": f"{finding.code}:{finding.where}"},
    }
    return found | ({"ruleIndex": rules[finding.code]} if finding.code in rules else {})


def _location(where: str, source: str) -> dict[str, Any]:
    """Return file and line if ``where`` is one, else its name, beside the file of the module if that is known."""
    match = _FILE_AND_LINE.fullmatch(where) or _FILE_AND_LINE.fullmatch(source)
    location: dict[str, Any] = {}
    if match is not None:
        uri = {"uri": _uri(Path(match[1]))}
        location["physicalLocation"] = {"artifactLocation": uri, "region": {"startLine": max(1, int(match[2]))}}
    if _FILE_AND_LINE.fullmatch(where) is None:
        location["logicalLocations"] = [{"fullyQualifiedName": where or "the set-up"}]
    return location


def _uri(path: Path) -> str:
    """Return the path as seen from here, since a repository is not in the same place everywhere."""
    if path.is_absolute():
        try:
            path = path.relative_to(Path.cwd())
        except ValueError:
            return path.as_uri()
    return quote(path.as_posix())
