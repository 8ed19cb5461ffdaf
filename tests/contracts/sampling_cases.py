"""Rows of sampling: how each sampler is built for a number of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from firstlight.sampling import Competence, CurriculumSampler, ResumableSampler


@dataclass(frozen=True)
class Row:
    """One name: a sampler, built from a number of samples and keywords, or a competence."""

    sampler: Callable[..., ResumableSampler | CurriculumSampler] | None = None
    competence: Callable[[], Competence] | None = None


def curriculum(size: int, **kwargs: Any) -> CurriculumSampler:
    """Return a curriculum in which sample i is the i-th easiest."""
    return CurriculumSampler([float(index) for index in range(size)], Competence(4, initial=0.2), **kwargs)


ROWS: dict[str, Row] = {
    "Competence": Row(competence=lambda: Competence(4, initial=0.2)),
    "CurriculumSampler": Row(sampler=curriculum),
    "ResumableSampler": Row(sampler=lambda size, **kwargs: ResumableSampler(range(size), **kwargs)),
}

BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Competence(0), ValueError, "epochs must be above zero, and finite; got 0"),
    (lambda: Competence(5, initial=0.0), ValueError, r"initial must be a fraction in \(0, 1\]; got 0.0"),
    (lambda: Competence(5, power=-1.0), ValueError, "power must be above zero, and finite; got -1.0"),
    (lambda: ResumableSampler([]), ValueError, "dataset must be one with at least one sample; got '0 samples'"),
    (lambda: ResumableSampler([1], num_replicas=2), ValueError, "rank must be given together with num_replicas"),
    (lambda: ResumableSampler([1], num_replicas=0, rank=0), ValueError, "num_replicas must be one or more.*got 0"),
    (lambda: ResumableSampler([1], num_replicas=2, rank=2), ValueError, "rank must be from 0 to num_replicas - 1 = 1"),
    (
        lambda: ResumableSampler([1]).load_state_dict({"seed": 0, "epoch": 0, "place": 0, "size": 2}),
        ValueError,
        "the state's size must be that of this sampler, 1; got 2",
    ),
    (
        lambda: curriculum(3).load_state_dict({"seed": 1, "epoch": 0, "place": 0, "size": 3}),
        ValueError,
        "the state's seed must be that of this sampler, 0; got 1",
    ),
    (lambda: CurriculumSampler([1.0, float("nan")], Competence(1)), ValueError, "difficulty must be finite numbers"),
    (
        lambda: CurriculumSampler(torch.zeros(2, 2), Competence(1)),
        ValueError,
        r"one number per sample; got 'shape \(2,",
    ),
    (lambda: list(CurriculumSampler([1.0], lambda t: 2.0)), ValueError, r"competence\(0\) must be a fraction.*got 2.0"),
    (
        lambda: list(CurriculumSampler([1.0, 2.0], lambda t: 1 - t)),
        ValueError,
        "competence must be one that never falls",
    ),
]
