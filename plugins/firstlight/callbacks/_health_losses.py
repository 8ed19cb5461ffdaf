"""Losses of a watched run that nobody has read yet, of this rank or of all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class Read(NamedTuple):
    """Losses, one a batch, means over ranks; the first bad batch counted back from the last one, and whose it was."""

    values: list[float]
    bad: int | None = None
    ranks: tuple[int, ...] = ()


class UnreadLosses:
    """Keeps the losses of batches where they are, and reads them together: one wait for the device, however many.

    A batch may have no loss. A loss that is known to be bad before it is read is told by :meth:`add_bad`.

    >>> losses = UnreadLosses()
    >>> for loss in (torch.tensor(2.0), 1.0, None, math.inf, 1.0):
    ...     losses.add(loss)
    >>> losses.read()
    Read(values=[2.0, 1.0, inf, 1.0], bad=1, ranks=(0,))
    """

    def __init__(self, kept: Iterable[float] = ()) -> None:
        self._kept: list[Tensor | float | None] = list(kept)
        self._bad: int | None = None  # its place among them

    def __bool__(self) -> bool:
        return bool(self._kept)

    def add(self, loss: Tensor | float | None) -> None:
        """Take the loss of a further batch."""
        self._kept.append(loss)

    def add_bad(self) -> None:
        """Know of the batch to come, before its loss is added, that its loss is not finite."""
        if self._bad is None:
            self._bad = len(self._kept)

    def state_dict(self) -> Tensor:
        """Return the losses as one tensor on their device; nothing waits for it."""
        kept = [loss for loss in self._kept if loss is not None]
        on = next((loss.device for loss in kept if isinstance(loss, Tensor)), torch.device("cpu"))
        return _on_device(kept, on)

    def read(self) -> Read:
        """Read what has come in since the last time."""
        kept, bad = self._taken()
        tensors = [loss for loss in kept if isinstance(loss, Tensor)]
        read = iter(torch.stack([loss.reshape(()).float() for loss in tensors]).tolist() if tensors else ())
        return _together([[next(read) if isinstance(loss, Tensor) else loss for loss in kept]], [bad])

    def read_over(self, strategy: Strategy) -> Read:
        """Read the same over all ranks, which must all call, after as many batches; they all return the same."""
        kept, bad = self._taken()
        device, count = strategy.root_device, len(kept)
        if not count:
            return Read([])
        losses = _on_device([0.0 if loss is None else loss for loss in kept], device)
        more = [float(loss is not None) for loss in kept] + [-1.0 if bad is None else float(bad)]
        rows = strategy.all_gather(torch.cat([losses, torch.tensor(more, dtype=losses.dtype, device=device)])).tolist()
        values = [
            [loss if there else None for loss, there in zip(row[:count], row[count:-1], strict=True)] for row in rows
        ]
        return _together(values, [None if row[-1] < 0 else int(row[-1]) for row in rows])

    def _taken(self) -> tuple[list[Tensor | float | None], int | None]:
        kept, bad = self._kept, self._bad
        self._kept, self._bad = [], None
        return kept, bad


def _on_device(losses: list[Tensor | float], device: torch.device) -> Tensor:
    if not any(isinstance(loss, Tensor) for loss in losses):
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        return torch.tensor(losses, dtype=dtype, device=device)
    alike = [loss.reshape(()).float() if isinstance(loss, Tensor) else loss for loss in losses]
    return torch.stack([loss if isinstance(loss, Tensor) else torch.full((), loss, device=device) for loss in alike])


def _together(rows: list[list[float | None]], known: list[int | None]) -> Read:
    """Return the mean of each batch over ``rows``, one a rank, and the first batch that is bad in any."""
    values = []
    first = len(rows[0])
    ranks: tuple[int, ...] = ()
    for rank, (row, bad) in enumerate(zip(rows, known, strict=True)):
        seen = (place for place, loss in enumerate(row) if loss is not None and not math.isfinite(loss))
        at = min(next(seen, len(row)), len(row) if bad is None else bad)
        if at < first:
            first, ranks = at, (rank,)
        elif at == first < len(row):
            ranks = (*ranks, rank)
    for losses in zip(*rows, strict=True):
        there = [loss for loss in losses if loss is not None]
        if there:
            values.append(sum(there) / len(there))
    return Read(values, None if not ranks else len(rows[0]) - 1 - first, ranks)
