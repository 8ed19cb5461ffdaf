"""The table of faults: what was done to a run, how often, how many steps it cost, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HEAD = ("fault", "tries", "lost steps", "outcome")


@dataclass(frozen=True)
class Try:
    """One fault inflicted on one run; ``lost_steps`` is None where no step could be lost."""

    fault: str
    outcome: str
    lost_steps: int | None = None


class FaultTable:
    """Collects tries; equal faults with equal outcomes become one row."""

    def __init__(self) -> None:
        self._tries: list[Try] = []

    def add(self, fault: str, outcome: str, lost_steps: int | None = None) -> None:
        """Write down one try, after its assertions held."""
        self._tries.append(Try(fault, outcome, lost_steps))

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return the rows in the order in which they first came."""
        groups: dict[tuple[str, str], list[Try]] = {}
        for one in self._tries:
            groups.setdefault((one.fault, one.outcome), []).append(one)
        return [
            (fault, str(len(tries)), _range(one.lost_steps for one in tries), outcome)
            for (fault, outcome), tries in groups.items()
        ]

    def lines(self) -> list[str]:
        """Return the table as lines of text; empty if nothing was tried."""
        rows = [HEAD, *self.rows()]
        if len(rows) == 1:
            return []
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        cells = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return [line.rstrip() for line in (cells[0], "  ".join("-" * width for width in widths), *cells[1:])]


def _range(steps: Iterable[int | None]) -> str:
    known = sorted(step for step in steps if step is not None)
    if not known:
        return "-"
    return str(known[0]) if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
