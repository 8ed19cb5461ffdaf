"""Each Yes of the comparison names a command or a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "template-comparison.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| (?!feature|-)", line)
]


def test_there_are_rows() -> None:
    assert len(ROWS) > 20
    assert all(len(row) == 7 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_yes_is_shown(row: list[str]) -> None:
    ours, shown = row[5], row[6].strip("`")
    assert ours == "Yes"
    if shown.startswith("make "):
        target = shown.removeprefix("make ")
        assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    path, _, test = shown.partition("::")
    assert f"def {test or 'test_'}" in (ROOT / path).read_text(encoding="utf-8")
