"""``check``: a preflight from the command line, with its options, its output and its exit code."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from firstlight.checks import Severity
from firstlight.cli._blame import passed_through
from firstlight.cli._check_options import Checking
from firstlight.cli._errors import UsageError
from firstlight.cli._say import say, short
from firstlight.cli._target import raised_at, said
from firstlight.preflight import (
    PreflightReport,
    Suppression,
    apply_suppressions,
    comments_in,
    read_baseline,
    run_preflight,
    source_of,
    write_baseline,
)

CRASHED = 3


def check(
    module: LightningModule, data: Any, *, trainer: Trainer | None, asked: Checking, configs: Iterable[Path] = ()
) -> tuple[PreflightReport | None, int]:
    """Run the preflight, write what was asked for, and return the report with its exit code.

    Raises:
        UsageError: something is wrong with what was given, not with the set-up.
    """
    known = _suppressions([*(source_of(part) for part in (module, data) if part is not None), *configs])
    baseline = _read(Path(asked.baseline)) if asked.baseline else []
    try:
        # standard output is the report's: what a model prints must not end up in the JSON
        with redirect_stdout(sys.stderr):
            report = run_preflight(module, data, trainer=trainer, budget_seconds=asked.budget, seed=asked.seed)
    except Exception as error:
        if passed_through(error, "subject_of"):
            raise UsageError(*_about_the_data(error, module, data, trainer)) from error
        traceback.print_exc()
        sys.stderr.write("error: the preflight itself failed, which says nothing about the set-up\n")
        return None, CRASHED
    report = apply_suppressions(_placed(report, module), [*known, *baseline])
    if asked.write_baseline:
        report = _with_new_baseline(report, baseline, asked)
    _write(report, asked)
    return report, report.exit_code_at(_severity(asked))


def _severity(asked: Checking) -> Severity:
    return Severity[asked.fail_on.upper()]


def _about_the_data(error: Exception, module: LightningModule, data: Any, trainer: Trainer | None) -> tuple[str, str]:
    if data is None and isinstance(module, LightningModule) and not is_overridden("train_dataloader", module):
        advice = "give --data TARGET" if trainer is None else "give data to trainer.fit"
        return f"{type(module).__qualname__} has no train_dataloader of its own", advice
    return said(error), "" if passed_through(error, "require") else raised_at(error)


def _placed(report: PreflightReport, module: LightningModule) -> PreflightReport:
    """Say in which file the module stands: where findings are shown that have no line of their own."""
    source = source_of(module)
    if source is None:
        return report
    return replace(report, environment={"source": f"{short(source)}:1", **report.environment})


def _suppressions(files: Iterable[Path | None]) -> list[Suppression]:
    try:
        return [found for file in dict.fromkeys(files) if file is not None for found in comments_in(file)]
    except ValueError as error:
        raise UsageError(str(error)) from None


def _read(path: Path) -> list[Suppression]:
    try:
        return read_baseline(path)
    except OSError:
        raise UsageError(f"there is no baseline {path}", f"--write-baseline {path} makes one") from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _with_new_baseline(report: PreflightReport, old: list[Suppression], asked: Checking) -> PreflightReport:
    path = Path(str(asked.write_baseline))
    today = date.today()
    used = [past.finding for past in report.ignored]
    kept = [entry for entry in old if any(entry.covers(finding) for finding in used)]
    failing = [finding for finding in report.findings if finding.severity >= _severity(asked)]
    write_baseline(path, failing, kept, today=today)
    say(f"baseline: {len(failing)} new, {len(kept)} kept, in {short(path)}")
    return apply_suppressions(replace(report, notes=()), read_baseline(path), today=today)


def _write(report: PreflightReport, asked: Checking) -> None:
    if asked.format == "text" and not asked.output:
        report.print(show_all=asked.all)
        return
    text = _rendered(report, asked)
    if not asked.output:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        return
    Path(asked.output).write_text(text, encoding="utf-8")
    report.print(show_all=asked.all)
    say(f"\nreport: {short(asked.output)}")


def _rendered(report: PreflightReport, asked: Checking) -> str:
    if asked.format == "text":
        told = io.StringIO()
        report.print(told, show_all=asked.all)
        return told.getvalue()
    if asked.format == "junit":
        return report.to_junit(_severity(asked))
    return {"json": report.to_json, "sarif": report.to_sarif, "html": report.to_html}[asked.format]()
