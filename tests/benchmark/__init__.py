"""Forty small training programs: twenty with a known fault and a twin without it, twenty healthy ones.

The programs know nothing of firstlight: they are the patients. ``CASES["D01"].build(buggy=True, seed=0)`` returns one.
"""

from __future__ import annotations

from benchmark import (
    data,
    healthy_nets,
    healthy_sequences,
    healthy_tables,
    healthy_training,
    healthy_unlabeled,
    init,
    loss,
    mode,
    optimizer,
)
from benchmark.case import Case

__all__ = ["CASES", "Case"]

FILES = (
    data,
    loss,
    optimizer,
    init,
    mode,
    healthy_tables,
    healthy_nets,
    healthy_sequences,
    healthy_unlabeled,
    healthy_training,
)

CASES: dict[str, Case] = {
    case.id: case for case in sorted((case for file in FILES for case in file.CASES), key=lambda case: case.id)
}
