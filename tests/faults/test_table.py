from __future__ import annotations

from faults._table import FaultTable


def test_tries_with_the_same_outcome_share_a_row():
    table = FaultTable()
    for lost in (3, 0, 1):
        table.add("SIGKILL", "equal to the bit", lost)
    table.add("SIGKILL", "no checkpoint yet: starts anew", 2)
    table.add("read-only folder", "refused before the first step")
    assert table.rows() == [
        ("SIGKILL", "3", "0 to 3", "equal to the bit"),
        ("SIGKILL", "1", "2", "no checkpoint yet: starts anew"),
        ("read-only folder", "1", "-", "refused before the first step"),
    ]
    assert table.lines()[0].split() == ["fault", "tries", "lost", "steps", "outcome"]
    assert FaultTable().lines() == []
