"""Fits that go in turn: real Trainers in one process, a few steps of each at a time, with the time of every turn.

Other work on the machine slows neighbouring turns alike, so that the difference of two turns tells what the difference
of two whole runs would hide.
"""

from __future__ import annotations

import random
import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any

from _table import clock
from lightning.pytorch import Callback


class Turns(Callback):
    """Waits after every ``length`` steps until its fit may go on; first in the list, to time the rest."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.times: list[float] = []
        self.error: BaseException | None = None
        self.over = False
        self._now = clock()
        self._began: float | None = None
        self._go, self._rested = threading.Semaphore(0), threading.Semaphore(0)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.length == 0:
            self._stop_the_clock()
            self._rested.release()
            self._go.acquire()
            self._began = self._now()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop_the_clock()

    def _stop_the_clock(self) -> None:
        if self._began is not None:  # else the turn before the first step, which sets up
            self.times.append(self._now() - self._began)

    def run(self, fit: Callable[[Turns], None]) -> None:
        """Run ``fit`` in a thread that does nothing outside its turns."""
        self._go.acquire()
        try:
            fit(self)
        except BaseException as error:
            self.error = error
        finally:
            self.over = True
            self._rested.release()

    def take(self) -> None:
        """Let the fit have one turn."""
        self._go.release()
        self._rested.acquire()


def race(fits: dict[str, Callable[[Turns], None]], *, length: int) -> dict[str, list[float]]:
    """Run all fits in turns of ``length`` steps, each round in another order; return the seconds of the turns."""
    order = random.Random(0)  # noqa: S311
    entries = {name: Turns(length) for name in fits}
    threads = [threading.Thread(target=entries[name].run, args=(fit,), name=name) for name, fit in fits.items()]
    for thread in threads:
        thread.start()
    while running := [entry for entry in entries.values() if not entry.over]:
        order.shuffle(running)
        for entry in running:
            entry.take()
    for thread, entry in zip(threads, entries.values(), strict=True):
        thread.join()
        if entry.error is not None:
            raise entry.error
    return {name: entry.times for name, entry in entries.items()}


def per_step(turns: Sequence[float], *, length: int, period: int) -> float:
    """Return the typical seconds of a step: the median of ordinary turns and that of turns that log, as often as each.

    The first ``period`` steps are not counted. A step in ``period`` logs and then validates, and is in the last turn.

    >>> per_step([9.0, 9.0, 1.0, 3.0, 1.0, 3.0], length=1, period=2)
    2.0
    """
    each = period // length
    counted = turns[each:]
    logs = statistics.median(counted[each - 1 :: each])
    rest = [value for turn, value in enumerate(counted, start=1) if turn % each]
    return ((each - 1) * statistics.median(rest or [0.0]) + logs) / period
