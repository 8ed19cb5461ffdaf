"""A W&B logger that cannot stop a run."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, final

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from firstlight._require import require
from firstlight._wandb_account import explicit_mode
from firstlight.tracking._guarded_run import GuardedRun, SilentRun
from firstlight.tracking._import_wandb import import_wandb, require_wandb
from firstlight.tracking._offline_run import ends_well, run_file
from firstlight.tracking._owned_run import OwnedRun, masked_argv, one_line, upload_given_up
from firstlight.tracking._redact import redact
from firstlight.tracking._wandb_start import Start, decide

_GRACE = 5.0  # seconds that wandb's own deadline gets before its helper is killed
_FLUSH = 2.0  # seconds of rows that a killed process may lose; wandb's own choice is 15
_LOOK = 60.0  # seconds between two looks at whether the run's file still grows


@final
class SafeWandbLogger(WandbLogger):
    """Lightning's ``WandbLogger``, made safe: it never asks a question, never stops a run and never waits for long.

    Mode: an explicit ``WANDB_MODE`` always wins; else without an API key (``WANDB_API_KEY`` or netrc) the run is
    written offline; else it is online, and offline if the server does not answer. One line says what happened and,
    offline, the exact ``wandb sync`` command. When wandb's helper process dies or takes nothing any more, the rest is
    written into an offline run beside the first; any other failure warns once and switches this logger off. When the
    file stops growing, as on a full disk, that is said too.

    Files go to ``save_dir/wandb/``. The values of secret keys (``api_key``, ``password``, ``..token``, ``..secret``)
    are masked in the config and in the recorded command line. The console is not recorded unless asked for.

    ``experiment`` starts the run; on ranks other than 0, and once switched off, it takes every call and does nothing.
    A run that someone else started with ``wandb.init()`` is used and left open.

    Args:
        name, save_dir, version, project, log_model, prefix, checkpoint_name: as Lightning's. ``log_model`` has no
            effect on a run that turns out offline: checkpoints stay where they are.
        offline: write offline even where there is a key.
        entity, group, job_type, tags, notes: as ``wandb.init``'s.
        capture_console: record stdout and stderr too (they may show secrets).
        share_environment: record host, command line, git revision and packages.
        init_timeout: seconds given to the server to answer at the start.
        finish_timeout: seconds given to the upload at the end, and to one row, table or picture before.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        ValueError: ``WANDB_MODE`` is not a mode of wandb; a timeout is not above zero.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        *,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        prefix: str = "",
        checkpoint_name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        capture_console: bool = False,
        share_environment: bool = True,
        init_timeout: float = 10.0,
        finish_timeout: float = 60.0,
    ) -> None:
        require_wandb()
        explicit_mode(os.environ)  # a typo is an error now, not after the data is loaded
        require(init_timeout > 0, "init_timeout", init_timeout, "above zero")
        require(finish_timeout > 0, "finish_timeout", finish_timeout, "above zero")
        super().__init__(
            name=name,
            save_dir=os.fspath(save_dir),
            version=version,
            offline=offline,
            project=project,
            log_model=log_model,
            prefix=prefix,
            checkpoint_name=checkpoint_name,
        )
        self._extra_init = {"entity": entity, "group": group, "job_type": job_type, "tags": tags, "notes": notes}
        self._capture_console, self._share_environment = capture_console, share_environment
        self._init_timeout, self._finish_timeout = init_timeout, finish_timeout
        self._start = Start("", "")
        self._run: Any = None
        self._run_dir: Path | None = None
        self._earlier_dir: Path | None = None  # of the run that this one goes on from, after its helper died
        self._carried_config: dict[str, Any] = {}
        self._looked_at, self._size = 0.0, -1
        self._reached: float | None = None  # the last step that a resumed run has, until the first row of this process
        self._apart = False  # once a second run was started
        self._exit_code = 0
        self._experiment: Any = None
        self._off = False
        self._owned: OwnedRun | None = None

    # What became of the run

    @property
    def offline_dir(self) -> Path | None:
        """The folder of an offline run; None before the run has started, online and when disabled."""
        return self._run_dir if self._start.mode == "offline" else None

    @property
    def sync_command(self) -> str | None:
        """The command that uploads an offline run, and what came before it; None wherever ``offline_dir`` is."""
        return self._sync() if self.offline_dir else None

    @property
    def version(self) -> str | None:
        """The id of the run, or the one asked for while there is no run."""
        return getattr(self._experiment, "id", None) or self._id

    # The run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started on first use."""
        if self._off:
            return SilentRun()
        if self._experiment is None:
            try:
                self._experiment = self._open()
            except Exception as error:  # whatever it is: a tracker that cannot start stops no run
                self._switch_off(error)
                self._experiment = SilentRun()
        return self._experiment

    def _open(self) -> Any:
        """Start a run, or take up the one in progress."""
        wandb = import_wandb()
        if wandb.run is not None and OwnedRun.current is not None:
            OwnedRun.current.finish()  # one of ours: a second run in one process is a run of its own
        if wandb.run is not None:
            self._start = Start("offline" if wandb.run.offline else "online", "started outside this logger")
            self._run_dir, self._run = Path(wandb.run.dir).parent, wandb.run
        else:
            self._start = decide(
                offline=self._offline,
                default_host=wandb.Settings().base_url,
                environ=os.environ,
                timeout=self._init_timeout,
            )
            self._begin(wandb)
            if self._run_dir is None:
                rank_zero_info(f"W&B: nothing is logged ({self._start.reason})")
            else:
                why = f"offline ({self._start.reason})"
                rank_zero_info(f"W&B: {why}, {self._run_dir}" if self.offline_dir else f"W&B: online, {self._run.url}")
        return GuardedRun(lambda: self._run, self._attempt)

    def _begin(self, wandb: Any) -> None:
        """Start a run that this logger owns."""
        save_dir = Path(self._save_dir or ".")
        save_dir.mkdir(parents=True, exist_ok=True)  # else wandb warns that its git root does not exist
        self._owned = OwnedRun(self.finish, save_dir)
        self._run = self._init(wandb, save_dir)
        self._owned.watch()
        if self._start.mode != "disabled":
            self._run_dir = Path(self._run.dir).parent
            self._looked_at, self._size = time.monotonic(), -1
            self._reached = self._run.summary.get("trainer/global_step") if self._run.resumed else None
            self._run.define_metric("trainer/global_step")
            self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def _begin_beside(self) -> None:
        """Close the run, and start another that goes on from it in one group."""
        before = self._run
        self._wandb_init["id"], self._apart = before.id, True
        self._carried_config = {key: value for key, value in before.config.items() if key != "_wandb"}
        if self._owned is not None:
            self._owned.close(1, self._finish_timeout + _GRACE)
            self._owned = None
        self._begin(import_wandb())

    def _init(self, wandb: Any, save_dir: Path) -> Any:
        """Call ``wandb.init`` in the mode decided, and offline if that fails."""
        if self._start.mode in ("online", "shared"):
            before = set((save_dir / "wandb").glob("run-*"))
            try:
                run = self._call_init(wandb, save_dir)
                if run.settings.mode == self._start.mode:
                    return run
                reason = "wandb could not log in"
            except (wandb.Error, OSError, TimeoutError) as error:
                reason = one_line(error)
            self._start = Start("offline", reason)
            with contextlib.suppress(Exception):
                wandb.teardown()
            for left_over in set((save_dir / "wandb").glob("run-*")) - before:
                shutil.rmtree(left_over, ignore_errors=True)
        return self._call_init(wandb, save_dir)

    def _call_init(self, wandb: Any, save_dir: Path) -> Any:
        mode = self._start.mode
        os.environ["WANDB_MODE"] = mode  # put back by OwnedRun; else wandb's telemetry believes that it is online
        arguments = {**self._wandb_init, **self._extra_init, "dir": str(save_dir), "mode": mode}
        arguments.pop("anonymous")  # has no effect any more, and wandb says so on every run
        if mode == "offline":
            arguments.pop("resume")  # needs the server
        if mode == "offline" or self._apart:
            arguments.update(_as_new_attempt(arguments, save_dir))
            arguments["config"] = {**self._carried_config, **arguments.get("config", {})}
        with masked_argv():
            return wandb.init(settings=wandb.Settings(**self._settings(wandb)), **arguments)

    def _settings(self, wandb: Any) -> dict[str, Any]:
        share = self._share_environment
        wanted = {
            "silent": True,  # what wandb would say in ten lines, this logger says in one
            "console": "auto" if self._capture_console else "off",
            "init_timeout": self._init_timeout,
            "login_timeout": self._init_timeout,
            "finish_timeout": self._finish_timeout,
            "finish_timeout_raises": True,
            "x_transaction_log_flush_interval": _FLUSH,
            "disable_git": not share,
            "disable_code": not share,
            "x_disable_meta": not share,
            "x_disable_machine_info": not share,
            "x_save_requirements": share,
        }
        return {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}

    # Failure

    def _attempt(self, action: Callable[[], Any], *, patient: bool = False) -> Any:
        """Return ``action()``; if the tracker fails in it, go on without, and return None.

        A mistake of the caller is raised. An action that is not patient is given ``finish_timeout``.
        """
        if self._off:
            return None
        owned = self._owned
        try:
            if owned is not None and owned.helper_ended():
                raise ConnectionError("its helper process ended")  # before a row is sent into the void
            with owned.bounded(self._finish_timeout) if owned and not patient else contextlib.nullcontext():
                return action()
        except Exception as error:
            if not isinstance(error, OSError) and not type(error).__module__.startswith("wandb"):
                raise
            if self._go_on_offline():
                return self._attempt(action, patient=patient)
            self._switch_off(error)
            return None

    def _attempt_for_trainer(self, action: Callable[[], Any], *, patient: bool = False) -> None:
        """Do as ``_attempt``, where nobody but the run itself would be hit by what is raised."""
        try:
            self._attempt(action, patient=patient)
        except Exception as error:
            told = f"{type(error).__name__}: {one_line(error)}"
            rank_zero_warn(f"W&B could not take what it was given ({told}); it is left out and the run goes on")

    def _go_on_offline(self) -> bool:
        """Write the rest into an offline run, if it is the helper that died and this is the first time."""
        owned, earlier = self._owned, self._run_dir
        if owned is None or earlier is None or self._earlier_dir or not owned.helper_ended(wait=1.0):
            return False
        self._earlier_dir, self._start = earlier, Start("offline", "wandb's helper process ended")
        try:
            self._begin_beside()
        except Exception:
            return False
        rank_zero_warn(f"W&B: wandb's helper process ended; the rest is logged offline, to upload: {self._sync()}")
        return True

    def _switch_off(self, error: BaseException) -> None:
        self._off = True
        kept = f"; what was logged until now: {self._sync()}" if self._run_dir else ""
        rank_zero_warn(f"W&B failed ({one_line(error)}) and is switched off; the run itself goes on{kept}")

    def _look_at_the_file(self) -> None:
        """Say once that rows do not reach the disk: wandb drops them without a word when it is full."""
        now = time.monotonic()
        if self._run_dir is None or now - self._looked_at < _LOOK:
            return
        file = run_file(self._run_dir)
        size = file.stat().st_size if file else -1
        stuck = file is not None and size == self._size  # though a row was logged right after the last look
        if stuck:
            told = "does not grow any more (is its disk full?); rows are missing there, the run itself goes on"
            rank_zero_warn(f"W&B: {file} {told}")
        self._looked_at, self._size = math.inf if stuck else now, size

    def _keep_apart(self, step: int | None) -> None:
        """Start a run of its own where a resumed one would get rows of steps that it has: no row is logged twice."""
        if self._reached is None or step is None or self._owned is None:
            return
        before, reached, self._reached = self._run, self._reached, None
        if step > reached:
            return
        self._begin_beside()
        told = f"run {before.id} has rows up to step {reached:g}, and this one goes on from an earlier step"
        rank_zero_info(f"W&B: {told}; it is run {self._run.id}, in one group with it")

    def _sync(self) -> str:
        folders = [path for path in (self._earlier_dir, self._run_dir) if path]
        online = not all(path.name.startswith("offline-") for path in folders)  # which wandb passes over, unless told
        words = ["wandb", "sync", *(["--include-online"] if online else []), *map(str, folders)]
        return shlex.join(words)

    # What the Trainer and callbacks call

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log a config, secrets masked."""
        self._attempt_for_trainer(lambda: super(SafeWandbLogger, self).log_hyperparams(redact(params)))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log one row."""

        def log() -> None:
            self._look_at_the_file()
            if self.experiment is not None:  # started by now, if anything can be
                self._keep_apart(step)
            super(SafeWandbLogger, self).log_metrics(metrics, step)

        self._attempt_for_trainer(log)

    @rank_zero_only
    def log_table(self, key: str, *args: Any, **kwargs: Any) -> None:
        """Log a table, as Lightning's logger does."""
        self._attempt(lambda: super(SafeWandbLogger, self).log_table(key, *args, **kwargs))

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log images, as Lightning's logger does."""
        self._attempt(lambda: super(SafeWandbLogger, self).log_image(key, images, step, **kwargs))

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Log the checkpoint as an artifact if ``log_model`` says so and the run is online."""
        if self._log_model and self._start.mode != "online":
            rank_zero_info("W&B: log_model has no effect offline; checkpoints stay where they are")
            self._log_model = False
        upload = super().after_save_checkpoint
        self._attempt_for_trainer(lambda: upload(checkpoint_callback), patient=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note how the fit or the test ended; the run stays open for the next one, until ``finish`` or the exit."""
        self._exit_code = 0 if status == "success" else 1
        self._attempt_for_trainer(lambda: super(SafeWandbLogger, self).finalize(status))

    @rank_zero_only
    def finish(self) -> None:
        """Close the run within ``finish_timeout`` and say in one line where it is. Called by itself at exit."""
        if self._owned is None:
            return
        owned, self._owned = self._owned, None
        failed_before, self._off = self._off, True  # from here on this logger is closed
        trouble = owned.close(self._exit_code, self._finish_timeout + _GRACE)
        if self._run_dir is None:
            return
        cut = "" if ends_well(self._run_dir) else "; its last rows did not reach the disk (was it full?)"
        if self.offline_dir:
            rank_zero_info(f"W&B: logged offline ({self._start.reason}){cut}; to upload: {self._sync()}")
        elif why := trouble or upload_given_up(self._run_dir) or ("it failed during the run" if failed_before else ""):
            rank_zero_info(f"W&B: the upload is not complete ({why}){cut}; to upload the rest: {self._sync()}")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the run, as for ``ddp_spawn``: the process that logs first starts it."""
        return {**self.__dict__, "_experiment": None, "_run": None, "_owned": None}


def _as_new_attempt(arguments: Mapping[str, Any], save_dir: Path) -> dict[str, Any]:
    """Give a resumed run an id of its own: two offline runs under one id collide when they are synced."""
    run_id = arguments["id"]
    attempts = len(list((save_dir / "wandb").glob(f"*run-*-{run_id}*"))) if run_id else 0
    if not attempts:
        return {}
    return {
        "id": f"{run_id}-{attempts}",
        "group": arguments["group"] or run_id,
        "job_type": arguments["job_type"] or f"resume-{attempts}",
        "config": {"resumed_from": run_id},
    }
