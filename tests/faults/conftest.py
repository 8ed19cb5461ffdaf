"""The tests of this folder fill one table, which is printed at the end."""

from __future__ import annotations

from typing import Any

import pytest
from faults._table import FaultTable

_TABLE = FaultTable()


@pytest.fixture
def fault_table() -> FaultTable:
    """The table of this session: ``fault_table.add(fault, outcome, lost_steps)`` at the end of a test."""
    return _TABLE


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = _TABLE.lines()
    if lines:
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(lines))
