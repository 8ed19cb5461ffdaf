"""Trains a case and returns its score."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer, seed_everything

from benchmark.case import Case
from helpers import trainer


def fit(case: Case, *, buggy: bool = False, seed: int = 0, factors: dict[str, float] | None = None, **kwargs: Any) -> Trainer:
    """Train one program as its author would, from a fixed seed; ``kwargs`` override arguments of its Trainer."""
    module, data, own = case.build(buggy, seed, **(factors or {}))
    seed_everything(seed, verbose=False)
    run = trainer(**(own | kwargs))
    run.fit(module, data)
    return run


def score(case: Case, **kwargs: Any) -> float:
    return float(fit(case, **kwargs).callback_metrics[case.metric])
