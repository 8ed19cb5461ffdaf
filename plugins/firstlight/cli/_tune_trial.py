"""One trial: the project's own ``fit``, as a process of its own.

A process, and not a call: a crash, a full device or a kill by the system ends the trial and not the search, nothing of
one trial is left in the next, and every strategy works that works in ``fit``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.cli._errors import UsageError
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
    import __main__

    if argv != sys.argv[1:]:
        raise UsageError("tune must be started from a shell: each trial is a command of its own")
    if __main__.__spec__ is not None:
        return [sys.executable, "-m", __main__.__spec__.name.removesuffix(".__main__")]
    return [sys.executable, os.path.abspath(sys.argv[0])]  # noqa: PTH100  a link stays a link


def run_trial(
    command: list[str], told: dict[str, Any], log: Path, meanwhile: Callable[[], None], every: float
) -> Ended:
    """Run a command to its end with its output in ``log``, and call ``meanwhile`` every so many seconds."""
    began = time.monotonic()
    environment = {**os.environ, VARIABLE: json.dumps(told)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as output,
        # Its standard input is never written to: it ends when this process does, however that happens.
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                try:
                    process.wait(timeout=every)
                except subprocess.TimeoutExpired:
                    meanwhile()
        except BaseException:
            process.kill()
            process.wait()  # at an interrupt Popen itself waits for a quarter of a second only
            raise
    return Ended(process.returncode, time.monotonic() - began, _last_words(log))


def _last_words(log: Path) -> str:
    """Return the error at the end of what a process wrote: ours in all its lines, of a traceback the last one."""
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for index in range(len(lines) - 1, max(len(lines) - 12, -1), -1):
        if lines[index].startswith("error: "):
            return "\n".join(lines[index:]).removeprefix("error: ")
    return lines[-1] if lines else ""
