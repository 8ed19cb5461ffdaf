"""Readings of what surrounds the run: folders, disk, saved state, monitored keys, workers, tracker, packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from firstlight._wandb_account import configured_host, explicit_mode, has_credentials
from firstlight.checks import Evidence
from firstlight.preflight._outputs import checkpointers, outputs_of, room_for, why_not
from firstlight.preflight._rehearsal import Rehearsal, bytes_of, rehearse
from firstlight.preflight._subject import Subject
from firstlight.preflight._twin import ForeignError
from firstlight.preflight._unloadable import unloadable
from firstlight.preflight._worker_draws import equal_draws

_PACKAGES = ("lightning", "pytorch-lightning")  # those with releases that FL008 knows as bad
_OF_THE_STATE = ("environment/lost", "environment/room", "environment/unlogged", "environment/unsynced")
_NO_TRAINER = "no Trainer was given"
_NO_MONITOR = "no callback watches a key"
# What our callbacks and Lightning's log, in the run and not on a copy.
_OF_CALLBACKS = ("lr/", "lr-", "grad/", "update/", "check/")
_ADDED = ("epoch", "step")  # by ModelCheckpoint itself


def probe_environment(subject: Subject, batch: Any, evidence: Evidence, attempt: Callable[..., Any]) -> None:
    """Ask what surrounds the run; each part is an ``attempt``, so that what fails in one leaves the others."""
    trainer, on = subject.trainer, "environment/"
    attempt((f"{on}packages",), lambda: _packages(evidence))
    attempt((f"{on}tracker",), lambda: _tracker(trainer, evidence))
    attempt((f"{on}outputs",), lambda: _outputs(trainer, evidence))
    attempt((f"{on}equal_draws",), lambda: _workers(subject, evidence))
    attempt(_OF_THE_STATE, lambda: _state(subject, batch, evidence))


def _packages(evidence: Evidence) -> None:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    evidence.add({"environment/packages": found})


def _tracker(trainer: Trainer | None, evidence: Evidence) -> None:
    loggers = [] if trainer is None else [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers:
        evidence.skip("environment/tracker", _NO_TRAINER if trainer is None else "no W&B logger is asked for")
        return
    mode = explicit_mode(os.environ)
    # wandb takes seconds to import: without it, the host is one that we do not know
    wandb = sys.modules.get("wandb")
    host = configured_host(os.environ, wandb.Settings().base_url if wandb is not None else "")
    keyless = mode not in ("offline", "disabled") and not has_credentials(host, os.environ, also="api.wandb.ai")
    evidence.add({"environment/tracker": [_named(logger) for logger in loggers if keyless and not _is_offline(logger)]})


def _named(logger: WandbLogger) -> list[Any]:
    return [type(logger).__name__, hasattr(logger, "sync_command")]


def _is_offline(logger: Any) -> bool:
    """Whether a logger needs no key: offline by its own settings, or with a run that is open already."""
    settings = getattr(logger, "_wandb_init", {})
    asked = settings.get("mode") in ("offline", "disabled", "dryrun")
    return bool(getattr(logger, "_offline", False)) or asked or getattr(logger, "_experiment", None) is not None


def _outputs(trainer: Trainer | None, evidence: Evidence) -> None:
    outputs = [] if trainer is None or _is_dry(trainer) else outputs_of(trainer)
    if not outputs:
        evidence.skip("environment/outputs", _NO_TRAINER if trainer is None else "the Trainer writes no files here")
        return
    causes = {path: why_not(path) for _, path in outputs}
    evidence.add({"environment/outputs": [[what, path, causes[path]] for what, path in outputs]})


def _is_dry(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _workers(subject: Subject, evidence: Evidence) -> None:
    ranks = 1 if subject.trainer is None else subject.trainer.world_size
    among, reason = equal_draws(subject.loader, ranks=ranks)
    if among is None:
        evidence.skip("environment/equal_draws", reason)
    else:
        evidence.add({"environment/equal_draws": among})


def _state(subject: Subject, batch: Any, evidence: Evidence) -> None:
    trainer = subject.trainer
    real = None if trainer is None or _is_dry(trainer) else trainer
    savers = [] if real is None else checkpointers(real)
    watched = [] if real is None else _watched(real)
    reasons = dict.fromkeys(_OF_THE_STATE, _NO_TRAINER) if trainer is None else _reasons(bool(savers), bool(watched))
    for key, reason in reasons.items():
        evidence.skip(key, reason)
    if trainer is not None and not savers and not watched:
        return
    weights_only = bool(savers) and all(saver.save_weights_only for saver in savers)
    try:
        rehearsal = rehearse(subject, batch, weights_only=weights_only, val=subject.val[:2] if watched else [])
    except ForeignError as error:
        for key in _OF_THE_STATE:
            evidence.skip(key, str(error))
        return
    if trainer is None or savers:
        evidence.add({"environment/lost": [list(found) for found in unloadable(rehearsal.checkpoint)]})
    if real is not None and savers:
        sizes = bytes_of(rehearsal.checkpoint), bytes_of(rehearsal.checkpoint["state_dict"])
        evidence.add({"environment/checkpoint_bytes": sizes[0]})
        evidence.add({"environment/room": room_for(real, subject.plan, sizes)})
    if real is not None and watched:
        _monitors(real, watched, rehearsal, evidence)


def _reasons(saves: bool, watches: bool) -> dict[str, str]:
    lost, room, *monitors = _OF_THE_STATE
    unsaved = {} if saves else dict.fromkeys((lost, room), "the Trainer saves no checkpoints")
    return unsaved | ({} if watches else dict.fromkeys(monitors, _NO_MONITOR))


def _watched(trainer: Trainer) -> list[tuple[Any, str]]:
    kinds = (ModelCheckpoint, EarlyStopping)
    callbacks = [c for c in trainer.callbacks if isinstance(c, kinds) and c.monitor]  # type: ignore[attr-defined]
    return [(callback, str(callback.monitor)) for callback in callbacks if callback.monitor not in _ADDED]


def _monitors(trainer: Trainer, watched: list[tuple[Any, str]], rehearsal: Rehearsal, evidence: Evidence) -> None:
    logged = rehearsal.logged
    evidence.add({"environment/logged": dict(logged)})
    ours = ("lightning.", "firstlight.")
    others = [c for c in trainer.callbacks if not type(c).__module__.startswith(ours)]  # type: ignore[attr-defined]
    missing = [
        (callback, key)
        for callback, key in watched
        if key not in logged and "/dataloader_idx_" not in key and not key.startswith(_OF_CALLBACKS)
    ]
    if missing and (rehearsal.unfinished or others):
        theirs = f"{type(others[0]).__name__} may log it" if others else ""
        evidence.skip("environment/unlogged", f"{missing[0][1]} was not seen, but {rehearsal.unfinished or theirs}")
    else:
        evidence.add({"environment/unlogged": [[type(c).__name__, key, _is_sure(c, trainer)] for c, key in missing]})
    if trainer.world_size < 2:
        evidence.skip("environment/unsynced", "there is one process")
        return
    apart = [[type(c).__name__, key] for c, key in watched if logged.get(key) is False]
    evidence.add({"environment/unsynced": apart})


def _is_sure(callback: Any, trainer: Trainer) -> bool:
    """Whether a callback looks after the first epoch, and ends the run when it finds nothing."""
    if isinstance(callback, EarlyStopping) and not callback.strict:
        return False
    return getattr(callback, "_every_n_epochs", 1) == 1 and trainer.check_val_every_n_epoch == 1
