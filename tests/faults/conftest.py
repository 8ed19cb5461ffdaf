"""The tests of this folder fill one table, which is printed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults._runs import Run, Server, trained
from faults._table import FaultTable
from faults.project import STEPS

_TABLE = FaultTable()


@pytest.fixture
def fault_table() -> FaultTable:
    """The table of this session: ``fault_table.add(fault, outcome, lost_steps)`` at the end of a test."""
    return _TABLE


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="session")
def unbroken(server: Server, tmp_path_factory: Any) -> dict[str, Any]:
    """What a run ends with that nothing happened to."""
    run = Run(server, tmp_path_factory.mktemp("unbroken"))
    done = run.fit()
    assert done.code == 0, done.output
    assert done.steps == list(range(1, STEPS + 1))
    return trained(run.checkpoints / "last.ckpt")


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    return Run(server, tmp_path / "project")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = _TABLE.lines()
    if lines:
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(lines))
