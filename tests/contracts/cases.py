"""The table of cases: one row for every public name of the rooms that need torch only.

A row says with which arguments a thing is built and what it is fed; ``tests/contracts/test_*.py`` hold the laws of its
kind over all rows. Each room has its part of the table in a file of its own; a public name without a row fails
``test_every_public_name_has_a_row``.
"""

from __future__ import annotations

import importlib

ROOMS = ("initializers", "layers", "losses", "mixing", "optimizers", "regularizers", "sampling", "schedules")


def rows(room: str) -> dict[str, object]:
    """Return the rows of ``room``, by public name."""
    found: dict[str, object] = dict(importlib.import_module(f"contracts.{room}_cases").ROWS)
    return found
