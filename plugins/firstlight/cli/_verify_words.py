"""What a training of a verification is told beside its configuration: to be short, and to write nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

_OFF = (
    *("wandb", "checkpoint", "progress_bar", "run_manifest", "graceful_stop"),
    # These take time and change nothing; what a HealthMonitor finds hangs on how long it has watched.
    *("overfit_one_batch", "preflight", "health_monitor"),
)
_VALIDATION_BATCHES = 2


def quiet_words(config: dict[str, Any], steps: int, folder: Path) -> list[str]:
    """Return the words; ``config`` is that of the ``fit`` that is verified."""
    trainer = config["trainer"]
    accumulate = trainer.get("accumulate_grad_batches") or 1
    epoch = max(1, steps * 2 // 3) * accumulate  # batches
    words = [f"--{name}=null" for name in _OFF]
    words += [f"--runs_dir={folder / 'runs'}", "--trainer.logger=false", "--trainer.profiler=null"]
    words.append("--trainer.enable_model_summary=false")
    words += _cut(trainer, "limit_train_batches", epoch)
    words += _cut(trainer, "limit_val_batches", _VALIDATION_BATCHES)
    every = trainer.get("val_check_interval")
    if _is_int(every) and every > epoch and trainer.get("check_val_every_n_epoch") is not None:
        words.append(f"--trainer.val_check_interval={epoch}")  # Lightning refuses one longer than the epoch
    if not _is_int(config.get("seed_everything")):
        words.append("--seed_everything=0")  # else each training has a seed of its own
    rate = config.get("learning_rate") or {}
    counted = sum(_steps_in(rate.get("schedule")))
    if counted and rate.get("total_steps") is None:
        words.append(f"--learning_rate.total_steps={2 * counted + 10 * steps}")  # warm-ups still fit into the run
    return words


def _cut(trainer: dict[str, Any], key: str, most: int) -> list[str]:
    """Return the words that leave at most so many batches; zero is none and stays so."""
    given = trainer.get(key)
    return [] if given == 0 or (_is_int(given) and given <= most) else [f"--trainer.{key}={most}"]


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _steps_in(value: Any) -> list[int]:
    """Return the durations in a schedule that are numbers of steps.

    >>> _steps_in({"class_path": "Joined", "init_args": {"warmup": 500, "decay": "200ba", "floor": 0.1}})
    [500, 200]
    """
    if isinstance(value, dict):
        return [steps for inner in value.values() for steps in _steps_in(inner)]
    if isinstance(value, list):
        return [steps for inner in value for steps in _steps_in(inner)]
    if isinstance(value, str) and value.endswith("ba") and value[:-2].isdecimal():
        return [int(value[:-2])]
    return [value] if _is_int(value) else []
