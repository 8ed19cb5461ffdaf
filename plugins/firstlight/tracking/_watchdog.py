"""A bound on the one call at the end of a run that wandb itself does not bound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from firstlight.tracking._import_wandb import import_wandb


class Watchdog:
    """Calls ``bite`` when the guarded block takes longer than ``seconds``.

    The thread is started at once and waits: from Python 3.12 no thread can be started while the interpreter exits,
    which is when a run is usually closed.
    """

    def __init__(self, seconds: float, bite: Callable[[], None]) -> None:
        self.bitten = False
        self._seconds, self._bite = seconds, bite
        self._armed, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="firstlight-wandb-watchdog")
        self._thread.start()

    def _watch(self) -> None:
        self._armed.wait()
        if not self._done.wait(self._seconds):
            self.bitten = True
            self._bite()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Watch the block; it may be entered once."""
        self._armed.set()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()


def wandb_service() -> Any:
    """Return the process handle of wandb's helper (wandb-core), None when it is not ours or not to be found.

    wandb has no public way to end a helper that hangs; where its insides look different, the bound is wandb's own.
    """
    place = getattr(import_wandb("sdk.wandb_setup"), "_singleton", None)
    for name in ("_connection", "_proc", "_process"):
        place = getattr(place, name, None)
    return place
