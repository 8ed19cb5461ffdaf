"""Preflight: can this set-up learn? Asked of copies, before training."""

from firstlight.preflight._apply_suppressions import apply_suppressions
from firstlight.preflight._assert_preflight import assert_preflight
from firstlight.preflight._report import CheckResult, PreflightReport
from firstlight.preflight._run import run_preflight
from firstlight.preflight._suppression import (
    Ignored,
    Suppression,
    comments_in,
    read_baseline,
    source_of,
    write_baseline,
)

__all__ = [
    "CheckResult",
    "Ignored",
    "PreflightReport",
    "Suppression",
    "apply_suppressions",
    "assert_preflight",
    "comments_in",
    "read_baseline",
    "run_preflight",
    "source_of",
    "write_baseline",
]
