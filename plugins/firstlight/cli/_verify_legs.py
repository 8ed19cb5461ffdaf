"""The trainings of a verification: each a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from firstlight.cli._errors import UsageError
from firstlight.cli._project_process import last_words, run_to_end
from firstlight.cli._verify_recorder import VARIABLE


@dataclass(frozen=True)
class Leg:
    """How a training ended, and what each of its ranks wrote down."""

    code: int
    log: Path
    ranks: list[dict[str, Any]]

    @property
    def ended(self) -> bool:
        return self.code == 0 and bool(self.ranks) and all(rank["records"] for rank in self.ranks)

    @property
    def why(self) -> str:
        """The last words of a training that failed."""
        if self.code < 0:
            return f"killed by signal {-self.code}"
        return last_words(self.log) if self.code else "not one step was trained"


@dataclass(frozen=True)
class Legs:
    """Starts trainings in ``folder``.

    Args:
        words: What ``fit`` is told.
        become: Makes of a forked process one that runs with such words; all that it needs is imported, nothing built.
        command: Starts the program anew, which takes seconds; None where nobody knows how.
        own: What the program is told before the words of ``fit``.
    """

    folder: Path
    words: tuple[str, ...]
    become: Callable[[list[str]], None]
    command: list[str] | None
    own: list[str]

    def run(self, name: str, *, more: tuple[str, ...] = (), anew: bool = False, **told: Any) -> Leg:
        """Train to the end in a process: ``anew`` from the interpreter on, else forked from this one where one can."""
        folder = self.folder / name
        log = self.folder / f"{name}.txt"
        variables = {VARIABLE: json.dumps({"folder": str(folder), **told})}
        words = [*self.words, *more]
        # A device that this process has touched cannot be used by its forks; elsewhere than on Linux forks are unsafe.
        forks = sys.platform == "linux" and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if self.command is not None and (anew or not forks):
            code = run_to_end([*self.command, *words], variables, log, lambda: None, None)
        elif forks:
            code = _forked(lambda: self.become(words), [*self.own, *words], variables, log)
        else:
            raise UsageError("verify-resume must be started from a shell: each training is a command of its own")
        ranks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("rank*.json"), key=_rank)]
        return Leg(code, log, ranks)


def _rank(path: Path) -> int:
    return int(path.stem.removeprefix("rank"))


def _forked(work: Callable[[], None], argv: list[str], variables: dict[str, str], log: Path) -> int:
    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.simplefilter("ignore")  # as they fall, whatever this process was told of them: there is a log
        os.environ.update(variables)
        sys.argv[1:] = argv  # Lightning starts further ranks with them
        with log.open("w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = sys.stderr = output
            try:
                work()
            except UsageError as error:
                output.write(f"error: {error}\n")
                raise SystemExit(error.code) from None
            except Exception:
                traceback.print_exc(file=output)
                raise SystemExit(1) from None

    process = multiprocessing.get_context("fork").Process(target=child)
    with warnings.catch_warnings():
        # Python says of every fork beside a thread that it may hang; no thread of ours holds a lock here.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    try:
        process.join()
    except BaseException:
        process.kill()
        process.join()
        raise
    return int(process.exitcode or 0)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit while this lasts, so that nothing is left behind."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # nobody else may set handlers
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
