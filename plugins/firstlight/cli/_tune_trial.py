"""One trial: the project's own ``fit``, as a process of its own.

A process, and not a call: a crash, a full device or a kill by the system ends the trial and not the search, nothing of
one trial is left in the next, and every strategy works that works in ``fit``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.cli._errors import UsageError
from firstlight.cli._project_process import command_of, last_words, run_to_end
from firstlight.cli._tune_reporter import VARIABLE


@dataclass(frozen=True)
class Ended:
    """How the process of a trial ended."""

    code: int
    seconds: float
    last_words: str

    @property
    def reason(self) -> str:
        """Why it failed, in a line."""
        if self.code < 0:
            return f"killed by signal {-self.code}"
        return self.last_words or f"ended with code {self.code}"


def project_command(argv: list[str]) -> list[str]:
    """Return how this program was started, without its arguments.

    Raises:
        UsageError: If it was not started from a shell with these arguments.
    """
    command = command_of(argv)
    if command is None:
        raise UsageError("tune must be started from a shell: each trial is a command of its own")
    return command


def run_trial(
    command: list[str], told: dict[str, Any], log: Path, meanwhile: Callable[[], None], every: float
) -> Ended:
    """Run a command to its end with its output in ``log``, and call ``meanwhile`` every so many seconds."""
    began = time.monotonic()
    code = run_to_end(command, {VARIABLE: json.dumps(told)}, log, meanwhile, every)
    return Ended(code, time.monotonic() - began, last_words(log))
