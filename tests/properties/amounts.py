"""How many examples: a few, the same ones at every run of the tests, or many new ones in ``make test-properties``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

Law = Callable[..., None]
_QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def few(law: Law, *inputs: SearchStrategy[Any], examples: int = 25) -> Law:
    """Return ``law`` as a test over the same few inputs at every run."""
    test: Law = settings(max_examples=examples, derandomize=True, **_QUIET)(given(*inputs)(law))
    return test


def many(law: Law, *inputs: SearchStrategy[Any], examples: int) -> Law:
    """Return ``law`` as a test of the group ``properties``, over inputs that differ from run to run."""
    test: Law = settings(max_examples=examples, print_blob=True, **_QUIET)(given(*inputs)(law))
    return pytest.mark.properties(test)


def ours(error: Exception) -> bool:
    """Whether an error of an argument is told in the house's form: what was given, what is expected."""
    return " must be " in str(error) and "; got " in str(error)
