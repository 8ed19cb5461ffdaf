"""What this process started for a W&B run, and how it is put back."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from firstlight.tracking._import_wandb import import_wandb
from firstlight.tracking._redact import redact_argv
from firstlight.tracking._watchdog import Watchdog, wandb_service


class OwnedRun:
    """The run that is open in this process: its helper process, its environment variables, its end at exit."""

    current: ClassVar[OwnedRun | None] = None

    def __init__(self, finish: Callable[[], None], save_dir: Path) -> None:
        self.finish = finish
        self._watchdog: Watchdog | None = None
        self._service: Any = None
        self._service_was_there = "WANDB_SERVICE" in os.environ
        self._set_environment(save_dir)
        OwnedRun.current = self
        import_wandb()  # registers its own handler for the exit, which so runs after ours
        if multiprocessing.parent_process() is None:
            atexit.register(self._at_exit)
        else:  # atexit handlers do not run in a child of multiprocessing
            multiprocessing.util.Finalize(None, self._at_exit, exitpriority=10)

    def watch(self) -> None:
        """Take hold of wandb's helper, if it came with this run; the run has started by now."""
        self._service = None if self._service_was_there else wandb_service()
        if self._service is not None:
            self._watchdog = Watchdog(self._service.kill)
            if multiprocessing.parent_process() is None:
                # The helper's own handler came with it, and waits for it without end; the last registered runs first.
                atexit.unregister(self._at_exit)
                atexit.register(self._at_exit)

    def bounded(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Kill the helper, which makes the call fail, if the block takes longer."""
        return self._watchdog.guard(seconds) if self._watchdog else contextlib.nullcontext()

    def helper_ended(self, wait: float = 0.0) -> bool:
        """Say whether wandb's helper is dead, or dies within ``wait`` seconds."""
        if self._service is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._service.wait(wait)
        return self._service.poll() is not None

    def close(self, exit_code: int, seconds: float) -> str:
        """Finish the run, and wandb's helper if it came with it; return what went wrong, or an empty string."""
        atexit.unregister(self._at_exit)
        wandb = import_wandb()
        trouble = ""
        with self.bounded(seconds):
            for step in (wandb.finish, self._teardown):
                try:
                    step(exit_code)
                except (Exception, SystemExit) as error:  # teardown exits with the helper's own exit code
                    trouble = trouble or one_line(error)
        if trouble:
            self._clear_away()
        if self._watchdog is not None:
            self._watchdog.close()
        self._restore_environment()
        OwnedRun.current = None
        return trouble

    def _teardown(self, exit_code: int) -> None:
        if not self._service_was_there:
            import_wandb().teardown(exit_code)

    def _clear_away(self) -> None:
        """Forget a run that did not end well, as wandb does only with one that did: the next must not go on in it."""
        with contextlib.suppress(Exception):
            import_wandb("sdk.lib.module").unset_globals()
        if self._service is not None:
            self._service.kill()
            self._service.wait()

    def _at_exit(self) -> None:
        # The stream that a test runner gave to logging may be closed by now, which is no news.
        raising, logging.raiseExceptions = logging.raiseExceptions, False
        try:
            self.finish()
        finally:
            logging.raiseExceptions = raising

    def _set_environment(self, save_dir: Path) -> None:
        """Set what wandb reads from the environment only."""
        changed = ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_ERROR_REPORTING", "WANDB_SILENT")
        self._environ = {name: os.environ.get(name) for name in changed}
        if self._environ["WANDB_MODE"] == "":  # wandb takes this for a wrong mode, everybody else for none
            del os.environ["WANDB_MODE"]
        # Tables and artifacts are staged here; wandb's own choice is the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str((save_dir / "wandb").absolute()))
        # Reports on wandb itself: with a server that does not answer they hold up the exit by 20 s.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")  # the setting of a run does not reach what is said around it

    def _restore_environment(self) -> None:
        for name, value in self._environ.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def upload_given_up(run_dir: Path) -> str:
    """Return why wandb gave up the upload, as when a key is withdrawn; empty if it did not. It raises nothing then."""
    try:
        log = (run_dir / "logs" / "debug-internal.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r'"filestream: fatal error: (?:filestream: )?([^"\\]*)', log)
    return found[1].rstrip(": {") if found else ""


@contextlib.contextmanager
def masked_argv() -> Iterator[None]:
    """Hide secrets in the command line while wandb reads it."""
    argv = sys.argv
    sys.argv = [*argv[:1], *redact_argv(argv[1:])]
    try:
        yield
    finally:
        sys.argv = argv


def one_line(error: BaseException) -> str:
    """Return what an error says, on one line and without the API key."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "***") if key else text)[:200]
