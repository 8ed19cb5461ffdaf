"""What worker processes drew: their generators after each batch, in memory that they share with the main process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from firstlight.recovery._random_state import SIZE, host_state, set_host_state

_PATIENCE = 10.0  # seconds that a worker may need for a batch that was asked for and is not wanted any more


class WorkerStates:
    """A ring for each worker: the loader fetches ahead, and a checkpoint is about the batches that were trained on."""

    def __init__(self, workers: int, prefetch: int) -> None:
        self._ring = torch.zeros(workers, prefetch + 3, SIZE, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._done = torch.zeros(workers, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._before = [0] * workers  # batches of past epochs, by worker
        self._at_start: list[Tensor | None] = [None] * workers
        self.fresh = True  # no epoch has begun yet

    def noting(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return ``collate``, the last thing that a worker does for a batch, with the note that it takes then."""
        return _Noting(collate, self._ring, self._done)

    def start_with(self, states: list[Tensor | None], batches: int) -> None:
        """Say which states the workers have been given, and how many batches of the epoch each has behind it."""
        self._at_start = list(states)
        self._before = [-batches] * len(states)

    def begin(self, asked_for: list[int] | None) -> None:
        """Take the start of a further epoch of the same workers, each of which was asked for so many batches.

        ``None``: nobody knows how many a worker made, but all of them are idle.
        """
        for worker in range(len(self._before)):
            made = int(self._done[worker]) if asked_for is None else self._before[worker] + asked_for[worker]
            self._before[worker] = made
            if made:
                self._at_start[worker] = self._noted(worker, made)

    def after(self, worker: int, batches: int) -> Tensor | None:
        """Return the state of a worker after so many batches of this epoch; None is as it was seeded."""
        made = self._before[worker] + batches
        return self._at_start[worker] if batches == 0 or made == 0 else self._noted(worker, made)

    def _noted(self, worker: int, made: int) -> Tensor:
        until = time.monotonic() + _PATIENCE
        while int(self._done[worker]) < made and time.monotonic() < until:
            time.sleep(0.001)
        state: Tensor = self._ring[worker, (made - 1) % self._ring.shape[1]]
        return state.clone()


class _Noting:
    def __init__(self, collate: Callable[[Any], Any], ring: Tensor, done: Tensor) -> None:
        self._collate, self._ring, self._done = collate, ring, done

    def __call__(self, samples: Any) -> Any:
        batch = self._collate(samples)
        info = get_worker_info()
        if info is not None:
            ring, done = self._ring[info.id], self._done[info.id : info.id + 1]
            ring[int(done) % len(ring)] = host_state()
            done += 1
        return batch


class Starting:
    """A ``worker_init_fn`` that gives each worker the generators that it had, after whatever seeds it."""

    def __init__(self, seeds: Callable[[int], Any] | None, states: list[Tensor | None]) -> None:
        self._seeds, self._states = seeds, states

    def __call__(self, worker: int) -> None:
        if self._seeds is not None:
            self._seeds(worker)
        state = self._states[worker]
        if state is not None:
            set_host_state(state)
