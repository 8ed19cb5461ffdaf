"""A table of columns as a file: CSV, or Parquet with pyarrow."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from firstlight.cli._errors import UsageError
from firstlight.cli._prediction_table import Column

TableFormat: TypeAlias = Literal["csv", "parquet"]


def check_format(form: TableFormat) -> None:
    """Say before the work what would be missing after it.

    Raises:
        UsageError: If pyarrow is not installed.
    """
    if form == "parquet" and find_spec("pyarrow") is None:
        raise UsageError("--format parquet needs pyarrow: pip install 'firstlight[parquet]', or take --format csv")


def write_table(table: Mapping[str, Column], path: Path, form: TableFormat) -> None:
    """Write the file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    (_write_parquet if form == "parquet" else _write_csv)(table, part)
    part.replace(path)


def _write_csv(table: Mapping[str, Column], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*map(_cells, table.values()), strict=True))


def _cells(column: Column) -> list[Any]:
    if isinstance(column, Tensor):
        if not column.is_floating_point():
            return column.tolist()
        # Nine digits bring back every float32, seventeen every float64.
        digits = 17 if column.dtype == torch.float64 else 9
        return [f"{value:.{digits}g}" for value in column.tolist()]
    return [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for cell in column]


def _write_parquet(table: Mapping[str, Column], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    arrays = {name: pyarrow.array(_array(column)) for name, column in table.items()}
    pyarrow.parquet.write_table(pyarrow.table(arrays), path)


def _array(column: Column) -> Any:
    if not isinstance(column, Tensor):
        return column
    return (column.float() if column.dtype == torch.bfloat16 else column).numpy()
