"""Preflight: can this set-up learn? Asked of copies, before training."""

from firstlight.preflight._repairs import repaired
from firstlight.preflight._report import CheckResult, PreflightReport
from firstlight.preflight._run import run_preflight

__all__ = ["CheckResult", "PreflightReport", "repaired", "run_preflight"]
