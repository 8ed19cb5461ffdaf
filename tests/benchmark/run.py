"""Trains a case as its author would, and holds its scores against those of plain torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Trainer, seed_everything

from benchmark.case import Case
from helpers import trainer

SCORES = Path(__file__).with_name("scores.json")


def fit(
    case: Case, *, buggy: bool = False, seed: int = 0, factors: dict[str, float] | None = None, **kwargs: Any
) -> Trainer:
    """Train one program from a fixed seed; ``kwargs`` override arguments of its Trainer."""
    module, data, own = case.build(buggy, seed, **(factors or {}))
    seed_everything(seed, verbose=False)
    run = trainer(**(own | kwargs))
    run.fit(module, data)
    return run


def score(case: Case, **kwargs: Any) -> float:
    return float(fit(case, **kwargs).callback_metrics[case.metric])


def untrained_score(case: Case, *, seed: int = 0) -> float:
    module, data, own = case.build(seed=seed)
    seed_everything(seed, verbose=False)
    return float(trainer(**own).validate(module, data, verbose=False)[0][case.metric])


def recorded() -> dict[str, dict[str, list[float]]]:
    """Return the scores of ``benchmarks/diagnosis_cases.py``: of each case ``fixed`` and, with a fault, ``buggy``.

    A healthy program is its own fixed one. A score that is not a number comes back as NaN.
    """
    return {
        name: {
            variant: [math.nan if value is None else value for value in values] for variant, values in scores.items()
        }
        for name, scores in json.loads(SCORES.read_text(encoding="utf-8")).items()
    }


def check(case: Case, *, fixed: list[float], buggy: list[float]) -> None:
    """Assert that the fixed program is as good as in plain torch, and the buggy one clearly worse.

    Clearly: by half of the distance there, or not a number at all.
    """
    if case.reference is None:
        return
    good = case.reference if isinstance(case.reference, float) else case.reference[1]
    assert abs(fmean(fixed) - good) <= case.tolerance, f"{case.id}: {fixed}, plain torch {good}"
    if isinstance(case.reference, tuple):
        gap = (good - case.reference[0]) / 2
        assert all(not math.isfinite(bad) or fmean(fixed) - bad >= gap for bad in buggy), f"{case.id}: {buggy}, {fixed}"
