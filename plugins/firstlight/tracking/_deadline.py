"""A call that is given only so much time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def call_with_deadline(function: Callable[[], Any], seconds: float) -> Any:
    """Return ``function()``, or raise what it raised, or ``TimeoutError`` when ``seconds`` are over.

    The thread is a daemon, so a call that hangs does not keep the process alive.
    """
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:  # handed to the caller, SystemExit included
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True, name="firstlight-deadline")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
