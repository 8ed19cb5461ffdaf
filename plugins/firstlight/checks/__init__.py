"""Checks: evidence in, findings out; coded, pure, and free of any Trainer."""

from firstlight.checks._all import CHECKS, WATCH_CHECKS
from firstlight.checks._check import Check, Evidence, Finding, Severity
from firstlight.checks._diagnosis import Diagnosis, diagnose
from firstlight.checks._known import known_checks

__all__ = [
    "CHECKS",
    "WATCH_CHECKS",
    "Check",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Severity",
    "diagnose",
    "known_checks",
]
