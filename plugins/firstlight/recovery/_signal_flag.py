"""A signal is noted, and nothing else is done about it until the training loop looks."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

_ECHO_SECONDS = 2.0
_WORKER_SECONDS = 60
_OVER = 1


class SignalFlag:
    """Notes the first of some signals in ``received``; the second ends the process as if nobody had listened.

    A handler runs between any two lines of Python: one that saves, logs or talks to other processes can do so in the
    middle of an optimizer step, or alone of all ranks. So this one only notes.

    Launchers pass on what the whole process group has got already: with ``echoes``, what follows the first signal
    within two seconds is taken for the same one.

    Loader workers get the group's signals too, but the step that is to be finished may still need them: during
    training the first signal gives those that were forked a minute more, if they call :meth:`outlast`. They go with
    their parent in any case, and the second signal ends them as well.
    """

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}
        self._pid = 0
        self._noted_at = 0.0
        self._shared = mmap.mmap(-1, 1)  # seen by forked workers
        self.received: signal.Signals | None = None
        self.echoes = False
        self._is_copy = False

    @property
    def installed(self) -> bool:
        """Whether signals are being noted."""
        return bool(self._before)

    def install(self) -> bool:
        """Take over the signals; False outside of the main thread, where Python lets nobody do that."""
        if threading.current_thread() is not threading.main_thread():
            return False
        self._pid, self.received = os.getpid(), None
        self._shared[0] = 0
        for one in self._signals:
            # None: set by something other than Python, which could not be put back
            if signal.getsignal(one) is not None:
                self._before[one] = signal.signal(one, self._note)
        return True

    def outlast(self) -> None:
        """Take over the signals in a forked loader worker; a spawned one could not be told when training is over."""
        if not self._is_copy:
            for one in self._signals:
                signal.signal(one, self._in_a_worker)

    def before(self, one: signal.Signals) -> Any:
        """Return the handler whose place ours has taken."""
        return self._before.get(one)

    def restore(self) -> None:
        """Put back the handlers that were there before, wherever ours still is."""
        if threading.current_thread() is threading.main_thread():
            for one, handler in self._before.items():
                if signal.getsignal(one) == self._note:
                    signal.signal(one, handler)
        self.leave()

    def leave(self) -> None:
        """Leave the handlers to whoever puts back all of them; loader workers may go."""
        self._before = {}
        self._shared[0] = _OVER

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._in_a_worker(number, frame)
        elif self.received is None:
            self.received, self._noted_at = signal.Signals(number), time.monotonic()
        elif not self.echoes or time.monotonic() - self._noted_at > _ECHO_SECONDS:
            _end_by(number)

    def _in_a_worker(self, number: int, frame: FrameType | None) -> None:
        if self._shared[0] == _OVER:
            _end_by(number)
        for one in self._signals:
            signal.signal(one, signal.SIG_DFL)
        signal.alarm(_WORKER_SECONDS)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without what belongs to this process, as for a spawned one."""
        return {"_signals": self._signals}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start anew in another process."""
        self.__init__(state["_signals"])  # type: ignore[misc]
        self._is_copy = True


def _end_by(number: int) -> None:
    """Die of a signal, so that whoever waits for this process sees it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
