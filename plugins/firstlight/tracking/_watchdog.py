"""A bound on calls that wandb itself does not bound: a helper that hangs takes no rows, and the sender waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from firstlight.tracking._import_wandb import import_wandb

_LOOK = 0.25  # seconds between two looks at the clock


class Watchdog:
    """Calls ``bite`` when a guarded block takes longer than its seconds.

    The thread is started at once and looks four times a second: from Python 3.12 no thread can be started while the
    interpreter exits, which is when a run is usually closed, and a guarded call costs no more than two assignments.
    """

    def __init__(self, bite: Callable[[], None]) -> None:
        self._bite = bite
        self._deadline: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="firstlight-wandb-watchdog")
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self._deadline = None
                self._bite()

    @contextmanager
    def guard(self, seconds: float) -> Iterator[None]:
        """Give the block so many seconds; a block inside another has its own."""
        before, self._deadline = self._deadline, time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = before

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()


def wandb_service() -> Any:
    """Return the process handle of wandb's helper (wandb-core), None when it is not ours or not to be found.

    wandb has no public way to end a helper that hangs; where its insides look different, the bound is wandb's own.
    """
    place = getattr(import_wandb("sdk.wandb_setup"), "_singleton", None)
    for name in ("_connection", "_proc", "_process"):
        place = getattr(place, name, None)
    return place
