"""Where a Trainer will write, whether it can, and what lies there at one time."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

from firstlight.preflight._twin import Plan

_BLOCK = b"\0" * 4096  # a full disk takes an empty file, and no block


def checkpointers(trainer: Trainer) -> list[ModelCheckpoint]:
    """Return the callbacks that save."""
    return [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]  # type: ignore[attr-defined]


def outputs_of(trainer: Trainer) -> list[tuple[str, str]]:
    """Return what will be written, and the folder, as the Trainer will choose it; addresses elsewhere are left out."""
    found = [(type(logger).__name__, logger.save_dir or trainer.default_root_dir) for logger in trainer.loggers]
    found += [(type(callback).__name__, folder_of(callback, trainer)) for callback in checkpointers(trainer)]
    return [(what, os.fspath(path)) for what, path in found if "://" not in os.fspath(path)]


def folder_of(callback: ModelCheckpoint, trainer: Trainer) -> str:
    """Return where a callback saves: its own folder, else below the first logger's, else below the Trainer's."""
    save_dir = next((logger.save_dir for logger in trainer.loggers[:1]), None)
    return os.fspath(callback.dirpath or save_dir or os.path.join(trainer.default_root_dir, "checkpoints"))  # noqa: PTH118


def nearest(path: str) -> Path:
    """Return the nearest thing on the way to ``path`` that exists."""
    whole = Path(path).absolute()
    return next(place for place in (whole, *whole.parents) if os.path.lexists(place) or place == place.parent)


def why_not(path: str) -> str:
    """Return why nothing can be written into a folder that may not exist yet; an empty string if it can."""
    place = nearest(path)
    if not place.is_dir():
        return f"{place} is in the way, and no folder"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".firstlight-") as file:
            file.write(_BLOCK)
            file.flush()
    except OSError as error:
        return f"{place}: {error.strerror}"
    return ""


def room_for(trainer: Trainer, plan: Plan, sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """Return, for each disk, what the checkpoints on it will take and what is free.

    ``sizes`` are the bytes of a whole checkpoint and of one that holds weights alone.
    """
    disks: dict[int, dict[str, Any]] = {}
    for callback in checkpointers(trainer):
        folder = folder_of(callback, trainer)
        saves = _saves(callback, plan)
        count, size = _at_once(callback, saves), sizes[bool(callback.save_weights_only)]
        place = nearest(folder)
        if "://" in folder or not place.is_dir():
            continue
        disk = disks.setdefault(
            place.stat().st_dev,
            {"folder": folder, "count": 0, "size": 0, "needed": 0, "free": 0, "at_most": False},
        )
        disk["count"] += count
        disk["size"] = max(disk["size"], size)
        disk["needed"] += count * size
        disk["free"] = shutil.disk_usage(place).free
        disk["at_most"] |= callback.save_top_k == -1 and _may_end_early(trainer)
    return [disk for disk in disks.values() if disk["count"]]


def _saves(callback: ModelCheckpoint, plan: Plan) -> int | None:
    """Return how often a callback saves in the planned run, if that is known."""
    every_step, every_epoch = getattr(callback, "_every_n_train_steps", 0), getattr(callback, "_every_n_epochs", 0)
    if every_step:
        return plan.steps // int(every_step) if plan.is_finite else None
    return plan.epochs // int(every_epoch) if every_epoch and plan.is_finite else None


def _at_once(callback: ModelCheckpoint, saves: int | None) -> int:
    """Return the most files of a callback at one moment: a new one is whole before the one that it replaces goes."""
    known = math.inf if saves is None else saves
    # how many are kept of a run of unknown length is at least one
    top = (saves or 1) if callback.save_top_k == -1 else int(min(callback.save_top_k, known))
    last = int(callback.save_last is True and known > 0)  # "link" is no file of its own
    replaces = 0 < callback.save_top_k < known or (last and known > 1)
    return top + last + bool(replaces)


def _may_end_early(trainer: Trainer) -> bool:
    return any(isinstance(c, (EarlyStopping, Timer)) for c in trainer.callbacks)  # type: ignore[attr-defined]
