"""Clock: where the time of a run goes, from the times of hooks alone."""

from __future__ import annotations

import time


class Clock:
    """Add up the seconds of each thing that the loop does; ``now`` says what it does from here on.

    ``"data"`` counts only where a step follows: between two batches Lightning also validates and saves.

    >>> clock = Clock()
    >>> for doing in ("data", "step", "data", "other"):
    ...     clock.now(doing)
    >>> clock.seconds["step"] > 0, clock.seconds["data"] < clock.seconds["other"] + clock.seconds["step"]
    (True, True)
    """

    def __init__(self) -> None:
        self.seconds = {"data": 0.0, "step": 0.0, "other": 0.0}
        self._doing = "other"
        self._since = time.perf_counter()

    def now(self, doing: str) -> None:
        time_now = time.perf_counter()
        was = "other" if self._doing == "data" and doing != "step" else self._doing
        self.seconds[was] += time_now - self._since
        self._doing, self._since = doing, time_now
