"""The reductions of a loss."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from firstlight._require import require

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def check_reduction(reduction: str) -> None:
    """Raise ``ValueError`` unless ``reduction`` is one of torch's three."""
    require(reduction in get_args(Reduction), "reduction", reduction, "'mean', 'sum' or 'none'")
