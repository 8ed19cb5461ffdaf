"""Preflight: can this set-up learn? Asked of copies, before training."""

from firstlight.preflight._activation_watch import ActivationWatch, first_nonfinite
from firstlight.preflight._repairs import repaired
from firstlight.preflight._report import CheckResult, PreflightReport
from firstlight.preflight._run import report_of, run_preflight

__all__ = [
    "ActivationWatch",
    "CheckResult",
    "PreflightReport",
    "first_nonfinite",
    "repaired",
    "report_of",
    "run_preflight",
]
