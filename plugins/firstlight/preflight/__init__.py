"""Preflight: can this set-up learn? Asked of copies, before training."""

from firstlight.preflight._activation_watch import ActivationWatch, first_nonfinite
from firstlight.preflight._apply_suppressions import apply_suppressions
from firstlight.preflight._assert_preflight import assert_preflight
from firstlight.preflight._repairs import repaired
from firstlight.preflight._report import CheckResult, PreflightReport
from firstlight.preflight._run import report_of, run_preflight
from firstlight.preflight._suppression import (
    Ignored,
    Suppression,
    comments_in,
    read_baseline,
    source_of,
    write_baseline,
)

__all__ = [
    "ActivationWatch",
    "CheckResult",
    "Ignored",
    "PreflightReport",
    "Suppression",
    "apply_suppressions",
    "assert_preflight",
    "comments_in",
    "first_nonfinite",
    "read_baseline",
    "repaired",
    "report_of",
    "run_preflight",
    "source_of",
    "write_baseline",
]
