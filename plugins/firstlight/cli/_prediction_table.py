"""Predictions of many batches as the columns of one table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor

from firstlight.cli._leaves import leaves

Column: TypeAlias = Tensor | list[Any]

_WIDEST = 1024  # numbers of one sample under one name: what is wider is an image, not a row


@dataclass(frozen=True)
class Part:
    """What was predicted for one batch; ``indices`` are those of its samples in the data set, where they are known."""

    loader: int
    batch: int
    size: int
    indices: Sequence[int] | None
    output: Any


def columns(parts: Sequence[Part]) -> dict[str, Column] | None:
    """Return the table, a sample a row, each sample once and in order; None for predictions that are no table.

    A name with many numbers a sample becomes as many columns. Where their number differs between batches, and for
    lists, a cell holds a list.
    """
    fields = [leaves(part.output) for part in parts]
    for part, found in zip(parts, fields, strict=True):
        if found.keys() != fields[0].keys() or not all(_fits(value, part.size) for value in found.values()):
            return None
    if not fields or not fields[0]:
        return None
    keys = _keys(parts)
    # A dictionary: a sampler may repeat samples so that all processes have as many.
    position = {key: row for row, key in reversed(list(enumerate(keys)))}
    order = sorted(position)
    rows = [position[key] for key in order]
    table: dict[str, Column] = {}
    if len({loader for loader, _ in order}) > 1:
        table["loader"] = [loader for loader, _ in order]
    table["index"] = [index for _, index in order]
    for name in fields[0]:
        for title, column in _spread(name, [found[name] for found in fields], rows):
            table[title if title not in table else f"predicted_{title}"] = column
    return table


def _keys(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Return loader and index of each row: counted where the index is not known."""
    keys: list[tuple[int, int]] = []
    counts: dict[int, int] = {}
    for part in parts:
        first = counts.get(part.loader, 0)
        counts[part.loader] = first + part.size
        indices = part.indices if part.indices is not None else range(first, first + part.size)
        keys += [(part.loader, index) for index in indices]
    return keys


def _fits(value: Any, size: int) -> bool:
    """Whether a value has a row for each sample."""
    if isinstance(value, Tensor):
        plain = not (value.is_complex() or value.is_sparse or value.is_quantized)
        return plain and value.ndim > 0 and len(value) == size and math.prod(value.shape[1:]) <= _WIDEST
    return isinstance(value, list) and len(value) == size and all(map(_is_cell, value))


def _is_cell(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_cell, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _spread(name: str, values: Sequence[Any], rows: list[int]) -> Iterator[tuple[str, Column]]:
    alike = all(isinstance(v, Tensor) and v.shape[1:] == values[0].shape[1:] for v in values)
    if not alike:
        cells = list(chain.from_iterable(v.tolist() if isinstance(v, Tensor) else v for v in values))
        yield name, [cells[row] for row in rows]
        return
    joined = torch.cat(list(values))[rows]
    shape = joined.shape[1:]
    flat = joined.flatten(1) if shape else joined[:, None]
    if math.prod(shape) == 1:
        yield name, flat[:, 0]
        return
    for number, place in enumerate(torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist()):
        yield "_".join([name, *map(str, place)]), flat[:, number]
