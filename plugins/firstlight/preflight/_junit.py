"""The report as JUnit XML, which every continuous integration reads."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from firstlight.checks import Finding, Severity
from firstlight.preflight._words import against, clean, headline, last_line, open_findings, state_of, tried

if TYPE_CHECKING:
    from firstlight.preflight import CheckResult, PreflightReport


def write_junit(report: PreflightReport, fail_on: Severity) -> str:
    """Return one suite with a case a check; findings of ``fail_on`` and above are failures, a crash is an error."""
    cases = [_case(report, result, fail_on) for result in report.results]
    counts = {
        "tests": len(cases),
        "failures": sum("<failure" in case for case in cases),
        "errors": sum("<error" in case for case in cases),
        "skipped": sum("<skipped" in case for case in cases),
    }
    said = " ".join(f'{key}="{count}"' for key, count in counts.items())
    head = f'name="firstlight preflight" {said} time="{report.seconds:.3f}"'
    return "\n".join(
        ['<?xml version="1.0" encoding="UTF-8"?>', f"<testsuites {head}>", f"<testsuite {head}>", *cases,
         "</testsuite>", "</testsuites>", ""]
    )  # fmt: skip


def _case(report: PreflightReport, result: CheckResult, fail_on: Severity) -> str:
    inside = []
    failing = [found for found in open_findings(report, result) if found.severity >= fail_on]
    others = [found for found in result.findings if found not in failing]
    if failing:
        message = quoteattr(clean("; ".join(f"{headline(found)}: {found.message}" for found in failing)))
        text = "\n".join(_text(found) for found in failing)
        inside.append(f'<failure type="{max(found.severity for found in failing)}" message={message}>{text}</failure>')
    elif result.status == "crashed":
        text = "\n".join(clean_line for clean_line in map(_printable, (result.traceback or "").splitlines()))
        inside.append(f'<error type="crashed" message={quoteattr(last_line(result.traceback))}>{text}</error>')
    elif result.status == "skipped":
        inside.append(f"<skipped message={quoteattr(clean(result.reason or 'no reason given'))}/>")
    elif state_of(report, result) == "ignored":
        reasons = {past.reason for past in report.ignored if past.finding.code == result.code}
        inside.append(f"<skipped message={quoteattr(clean('ignored: ' + '; '.join(sorted(reasons))))}/>")
    if others:
        inside.append("<system-out>" + "\n".join(_text(found) for found in others) + "</system-out>")
    name = quoteattr(f"{result.code} {clean(result.name)}: {clean(result.title)}")
    return f'<testcase classname="firstlight.{result.group}" name={name}>{"".join(inside)}</testcase>'


def _text(finding: Finding) -> str:
    lines = [f"{headline(finding)}: {clean(finding.message)}", f"measured: {against(finding)}", clean(finding.why),
             f"change: {clean(finding.advice)}", tried(finding)]  # fmt: skip
    return escape("\n".join(line for line in lines if line))


def _printable(line: str) -> str:
    return escape(line[: len(line) - len(line.lstrip())] + clean(line))
