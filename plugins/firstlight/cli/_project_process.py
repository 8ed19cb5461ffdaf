"""The project's own command line, started again as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def command_of(argv: list[str]) -> list[str] | None:
    """Return how this program was started, less the arguments ``argv`` at the end; None if it has others."""
    import __main__

    own = own_words(argv)
    if [*own, *argv] != sys.argv[1:]:
        return None
    if __main__.__spec__ is not None:
        return [sys.executable, "-m", __main__.__spec__.name.removesuffix(".__main__"), *own]
    return [sys.executable, os.path.abspath(sys.argv[0]), *own]  # noqa: PTH100  a link stays a link


def own_words(argv: list[str]) -> list[str]:
    """Return what this program was told before the arguments ``argv``."""
    return sys.argv[1 : max(1, len(sys.argv) - len(argv))]


def run_to_end(
    command: list[str], variables: Mapping[str, str], log: Path, meanwhile: Callable[[], None], every: float | None
) -> int:
    """Run a command with its output in ``log``, call ``meanwhile`` every so many seconds, and return its code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as output,
        # Its standard input is never written to: it ends when this process does, however that happens.
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env={**os.environ, **variables}
        ) as process,
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
    return process.returncode


def last_words(log: Path) -> str:
    """Return the error at the end of what a process wrote: ours in all its lines, of a traceback the last one."""
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for index in range(len(lines) - 1, max(len(lines) - 12, -1), -1):
        if lines[index].startswith("error: "):
            return "\n".join(lines[index:]).removeprefix("error: ")
    return lines[-1] if lines else ""


def words_of_fit(
    argv: list[str], command: str, own: Iterable[str], flags: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Return what stands before and after ``command`` without the options that are its own; ``flags`` take no value.

    >>> words_of_fit(["tune", "--priority", "1", "--prune=false", "--a", "3"], "tune", ["priority", "prune"])
    ([], ['--a', '3'])
    """
    start = argv.index(command)
    own_options, without_value = ({f"--{name}" for name in names} for names in (own, flags))
    kept: list[str] = []
    words = iter(argv[start + 1 :])
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag not in own_options:
            kept.append(word)
        elif not equals and flag not in without_value:
            next(words, None)
    return argv[:start], kept
