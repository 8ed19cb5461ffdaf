"""PreflightReport: what every check said, and the diagnosis."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

from firstlight.checks import Diagnosis, Finding, Severity
from firstlight.preflight._console import write_console
from firstlight.preflight._json import read_json, write_json
from firstlight.preflight._junit import write_junit
from firstlight.preflight._page import write_page
from firstlight.preflight._sarif import write_sarif
from firstlight.preflight._save_pictures import save_pictures
from firstlight.preflight._suppression import Ignored

SCHEMA = 1  # of the JSON
Status: TypeAlias = Literal["passed", "info", "warning", "error", "skipped", "crashed"]


@dataclass(frozen=True)
class CheckResult:
    """What one check said: passed, found something, was skipped with a reason, or failed itself."""

    code: str
    name: str
    title: str
    status: Status
    findings: tuple[Finding, ...] = ()
    reason: str | None = None  # of a skipped check
    traceback: str | None = None  # of a crashed one

    @property
    def group(self) -> str:
        """Return the line of the checklist: environment, data, model, loss, gradient, update or progress."""
        return GROUPS[self.code[2]]


GROUPS = {
    "0": "environment",
    "1": "data",
    "2": "model",
    "3": "loss",
    "4": "gradient",
    "5": "update",
    "6": "progress",
}


@dataclass(frozen=True)
class PreflightReport:
    """The whole of a preflight.

    ``readings`` are the measured values by key; ``pictures`` what a page draws: ``overfit`` (curves of the user's
    optimizer and of the reference, with the best constant), ``schedule`` (learning rate by step), ``inputs`` (what the
    model receives) and ``layers`` (gradients and updates by module). ``ignored`` are findings that do not count, each
    with its reason; ``notes`` say which suppressions have expired or cover nothing.
    """

    results: tuple[CheckResult, ...]
    diagnosis: Diagnosis
    readings: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)  # versions, seed, device, module, planned steps
    seconds: float = 0.0
    over_budget: bool = False
    ignored: tuple[Ignored, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """All findings, the root cause first."""
        root = [self.diagnosis.root] if self.diagnosis.root is not None else []
        return [*root, *self.diagnosis.symptoms, *self.diagnosis.others]

    @property
    def root(self) -> Finding | None:
        """The root cause, or ``None``."""
        return self.diagnosis.root

    @property
    def skipped(self) -> dict[str, str]:
        """Reasons by the code of each check that could not be made."""
        return {result.code: result.reason or "" for result in self.results if result.status == "skipped"}

    @property
    def crashed(self) -> dict[str, str]:
        """Tracebacks by the code of each check that failed itself."""
        return {result.code: result.traceback or "" for result in self.results if result.status == "crashed"}

    @property
    def exit_code(self) -> int:
        """0 clean, 1 an error was found, 3 a check itself failed, 4 the budget was spent."""
        return self.exit_code_at(Severity.ERROR)

    def exit_code_at(self, fail_on: Severity) -> int:
        """Return the exit code where findings of ``fail_on`` and above fail."""
        if any(found.severity >= fail_on for found in self.findings):
            return 1
        return 3 if self.crashed else 4 if self.over_budget else 0

    def print(self, file: TextIO | None = None, *, show_all: bool = False) -> None:
        """Print checklist and diagnosis, at most 100 columns wide; ``show_all`` leaves no finding out.

        Color only on a terminal, and not where the environment says ``NO_COLOR``.
        """
        write_console(self, sys.stdout if file is None else file, show_all=show_all)

    def to_json(self) -> str:
        """Return the whole report as JSON; NaN and infinities are strings."""
        return write_json(self, SCHEMA)

    @staticmethod
    def from_json(text: str) -> PreflightReport:
        """Return the report that :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no report, or one that a newer version wrote.
        """
        return read_json(text, SCHEMA)

    def to_sarif(self) -> str:
        """Return the findings as SARIF 2.1.0, for code hosts."""
        return write_sarif(self)

    def to_junit(self, fail_on: Severity = Severity.ERROR) -> str:
        """Return a test case a check as JUnit XML; findings of ``fail_on`` and above are failures."""
        return write_junit(self, fail_on)

    def to_html(self) -> str:
        """Return the report as one page with its pictures, which asks nothing of a network and holds no script."""
        return write_page(self)

    def save_pictures(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Save the pictures as PNG files into ``folder`` and return their paths; says so if matplotlib is not there."""
        return save_pictures(self.pictures, Path(folder))
