"""Lightning's ``metrics.csv``, read with the standard library."""

from __future__ import annotations

import csv
import os
from pathlib import Path


def read_metrics(path: str | os.PathLike[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Return ``{key: (steps, values)}`` from the ``metrics.csv`` that Lightning's CSVLogger writes.

    ``path`` is the file, or the folder that holds it. A key has only the rows in which it was logged, in the order of
    the file; ``epoch`` is a key like any other. Cells that are not numbers are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no ``step`` column, so CSVLogger did not write it.
    """
    file = Path(path)
    file = file / "metrics.csv" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"no metrics at {file}; CSVLogger writes metrics.csv into its run folder")
    metrics: dict[str, tuple[list[int], list[float]]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError(f"{file} has no 'step' column; expected the metrics.csv of Lightning's CSVLogger")
        for row in reader:
            step = _number(row.pop("step"))
            for key, cell in row.items():
                value = _number(cell)
                if step is not None and value is not None:
                    steps, values = metrics.setdefault(key, ([], []))
                    steps.append(int(step))
                    values.append(value)
    return metrics


def _number(cell: object) -> float | None:
    """Return the number in a cell: None for an empty one, for text, or where a killed run cut the last line."""
    if not isinstance(cell, str) or not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        return None
