"""InitReport: target against measured, a row a weight."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InitRow:
    """One weight of the report: its standard deviation, asked for and found; a reason if it was left alone.

    In the report of :func:`lsuv_` the standard deviations are those of the layer's output, and ``calls`` says how
    often the layer was called besides the one forward pass.

    >>> InitRow("0", "Linear", "relu", "he", 0.5, 0.49).target_variance
    0.25
    """

    name: str
    layer: str
    feeds: str
    scheme: str
    target_std: float | None
    measured_std: float | None
    skipped: str | None = None
    calls: int | None = None

    @property
    def target_variance(self) -> float | None:
        """The square of ``target_std``."""
        return None if self.target_std is None else self.target_std**2

    @property
    def measured_variance(self) -> float | None:
        """The square of ``measured_std``."""
        return None if self.measured_std is None else self.measured_std**2


@dataclass(frozen=True)
class InitReport:
    """What an initializer did, a row a weight, with warnings; prints as a table.

    >>> report = InitReport((InitRow("0", "Linear", "relu", "he", 0.5, 0.49),), ("too deep",))
    >>> print(report)
    layer  type    feeds  initializer  target std  measured  note
    0      Linear  relu   he           0.5         0.49
    warning: too deep
    """

    rows: tuple[InitRow, ...]
    warnings: tuple[str, ...] = ()

    @property
    def initialized(self) -> tuple[InitRow, ...]:
        """The rows of weights that were filled."""
        return tuple(row for row in self.rows if row.skipped is None)

    @property
    def skipped(self) -> tuple[InitRow, ...]:
        """The rows of weights that were left alone, each with its reason."""
        return tuple(row for row in self.rows if row.skipped is not None)

    def __str__(self) -> str:
        """Draw the rows as a table, the warnings below it."""
        head = ("layer", "type", "feeds", "initializer", "target std", "measured", "note")
        body = [
            (r.name, r.layer, r.feeds, r.scheme, _number(r.target_std), _number(r.measured_std), r.skipped or "")
            for r in self.rows
        ]
        widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in [head, *body]
        ]
        return "\n".join([*table, *(f"warning: {text}" for text in self.warnings)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
