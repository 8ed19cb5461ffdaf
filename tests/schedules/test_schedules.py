"""Schedules: pure in the step, in [0, 1], torch's where torch has the same, flat after the end."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from firstlight.schedules import Constant, CosineAnnealing, Schedule, StepDecay, WarmupCosine, lr_lambda

ALL = [
    Constant(),
    Constant(warmup=7),
    Constant(warmup=0.2),
    StepDecay(every=10),
    StepDecay(every=0.25, gamma=0.5, warmup=3),
    CosineAnnealing(),
    CosineAnnealing(floor=0.1),
    WarmupCosine(),
    WarmupCosine(warmup=10, floor=0.05),
    WarmupCosine(warmup=1.0),
    WarmupCosine(warmup=500),
]


def torch_factors(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("schedule", ALL, ids=repr)
@pytest.mark.parametrize("total", [1, 2, 40, 1000])
def test_laws(schedule, total):
    factors = [schedule.factor(step, total) for step in range(total)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[0] > 0.0, "a first step at rate 0 is a wasted one"
    assert factors == [schedule.factor(step, total) for step in range(total)], "pure in the step"
    if not isinstance(schedule, StepDecay):
        after = [schedule.factor(total + extra, total) for extra in (0, 1, 100)]
        assert max(after) - min(after) < 1e-12 or isinstance(schedule, Constant), "flat after the end"


@pytest.mark.parametrize("schedule", [s for s in ALL if not isinstance(s, StepDecay)], ids=repr)
def test_continuous(schedule):
    """No jump is larger than the steepest part of the shape itself: the warm-up's slope or the cosine's middle."""
    total = 10_000
    factors = [schedule.factor(step, total) for step in range(total + 2)]
    peak = factors.index(1.0) + 1
    slope = 1 / peak if peak > 1 else 0.0
    steepest = max(slope, math.pi / 2 / max(1, total - peak))
    jumps = [abs(b - a) for a, b in itertools.pairwise(factors)]
    assert max(jumps) <= steepest * (1 + 1e-9)


def test_step_decay_is_torch_step_lr():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.StepLR(o, 10, gamma=0.3), 45)
    assert [StepDecay(every=10, gamma=0.3).factor(t) for t in range(45)] == pytest.approx(expected, rel=1e-12)


def test_cosine_is_torch_until_the_end_and_then_stays():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50), 51)
    assert [CosineAnnealing().factor(t, 50) for t in range(51)] == pytest.approx(expected, abs=1e-12)
    assert CosineAnnealing().factor(100, 50) == 0.0  # torch's is back at 1


def test_warmup_cosine_is_linear_then_cosine():
    schedule, warmup, total = WarmupCosine(warmup=10, floor=0.1), 10, 110
    cosine = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0.1), 101)
    expected = [(t + 1) / warmup for t in range(warmup)] + cosine
    assert [schedule.factor(t, total) for t in range(total + 1)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(5, 100, 5), (0.05, 100, 5), (0.001, 100, 1), (0.0, 100, 0), (1.0, 100, 100)]
)
def test_durations(warmup, total, steps):
    reached = next(t for t in range(total + 1) if Constant(warmup=warmup).factor(t, total) == 1.0)
    assert reached == max(0, steps - 1)


def test_epochs_and_batches_are_resolved_by_the_trainer():
    schedule = WarmupCosine(warmup="2ep").resolve(steps_per_epoch=30)
    assert schedule.warmup == 60
    assert WarmupCosine(warmup="50ba").resolve(steps_per_epoch=None, steps_per_batch=0.5).warmup == 25
    with pytest.raises(ValueError, match="only the trainer knows"):
        WarmupCosine(warmup="2ep").factor(0, 100)
    with pytest.raises(ValueError, match="no length"):
        WarmupCosine(warmup="2ep").resolve(steps_per_epoch=None)


@pytest.mark.parametrize("bad", [-1, 1.5, -0.1, True, "3 epochs", "ep", None])
def test_bad_durations_are_refused(bad):
    with pytest.raises(ValueError, match="warmup must be an int of optimizer steps"):
        WarmupCosine(warmup=bad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CosineAnnealing(floor=2.0),
        lambda: StepDecay(every=0),
        lambda: StepDecay(every=5, gamma=1.5),
        lambda: CosineAnnealing().factor(3),
        lambda: lr_lambda(CosineAnnealing()),
        lambda: Constant(warmup=0.5).factor(0),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_needs_total():
    assert not any(s.needs_total for s in (Constant(), Constant(warmup=5), StepDecay(every=5)))
    assert all(s.needs_total for s in (Constant(warmup=0.5), StepDecay(every=0.5), CosineAnnealing(), WarmupCosine()))


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_frozen_values(schedule):
    assert isinstance(schedule, Schedule)
    assert dataclasses.replace(schedule) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.warmup = 3
