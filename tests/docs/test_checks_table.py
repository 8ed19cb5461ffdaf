"""The table of checks is what the checks say of themselves."""

from __future__ import annotations

import runpy
from pathlib import Path

from firstlight.checks import known_checks

ROOT = Path(__file__).parents[2]


def test_the_table_is_as_the_script_writes_it():
    page = (ROOT / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    with_table = runpy.run_path(str(ROOT / "scripts" / "checks_table.py"))["with_table"]
    assert with_table(page) == page, "run python scripts/checks_table.py"
    assert page.count("\n| `FL") == len(known_checks())
