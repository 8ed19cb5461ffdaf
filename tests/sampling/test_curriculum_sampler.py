"""CurriculumSampler and Competence: what comes when."""

from __future__ import annotations

import math

import pytest
import torch

from firstlight.sampling import Competence, CurriculumSampler


@pytest.mark.parametrize("initial", [0.01, 0.1, 1.0])
def test_competence_is_the_formula_of_the_paper(initial):
    """``c(t) = min(1, sqrt(t (1 - c0**2) / T + c0**2))``."""
    competence = Competence(20, initial=initial)
    for t in (0, 0.5, 1, 7, 19.9, 20, 31):
        expected = min(1.0, math.sqrt(t * (1 - initial**2) / 20 + initial**2))
        assert competence(t) == pytest.approx(expected, rel=1e-12)
    assert competence(0) == pytest.approx(initial, rel=1e-12)
    assert competence(20) == competence(10**9) == 1.0


def test_power_one_is_linear():
    competence = Competence(10, initial=0.2, power=1.0)
    assert [competence(t) for t in (0, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])


def test_competence_never_falls():
    values = [Competence(3, initial=0.05, power=power)(t / 50) for power in (0.5, 1, 2, 5) for t in range(200)]
    for start in range(0, len(values), 200):
        assert values[start : start + 200] == sorted(values[start : start + 200])


@pytest.mark.parametrize("size", [500, 3000])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_every_draw_is_among_the_easiest(epoch, size):
    """At place i, by the competence at that very place; and the hardest of the pool do come."""
    competence = Competence(4, initial=0.1)
    difficulty = torch.randperm(size, generator=torch.Generator().manual_seed(3))
    sampler = CurriculumSampler(difficulty.double(), competence)
    order = sampler.order(epoch).tolist()
    limits = [math.ceil(competence(epoch + place / size) * size) for place in range(size)]
    ranks = [int(difficulty[index]) for index in order]
    assert all(rank < limit for rank, limit in zip(ranks, limits, strict=True))
    assert max(rank / limit for rank, limit in zip(ranks, limits, strict=True)) > 0.98


def test_draws_are_uniform_over_the_pool():
    """Under a constant competence, each sample of the pool comes equally often within an epoch, within one."""
    sampler = CurriculumSampler([float(i) for i in range(100)], lambda t: 0.3)
    counts = torch.bincount(sampler.order(0), minlength=100)
    assert counts[:30].min() == 3
    assert counts[:30].max() == 4
    assert counts[30:].sum() == 0
    first = torch.stack([CurriculumSampler(list(range(30)), lambda t: 0.5, seed=s).order(0)[0] for s in range(600)])
    assert torch.bincount(first).min() > 15  # 40 each, all 15 of them


def test_samples_that_join_come_soon():
    """Nothing that joins in the first half of an epoch waits for the next one."""
    size, competence = 400, Competence(4, initial=0.1)
    sampler = CurriculumSampler([float(i) for i in range(size)], competence)
    seen = set(sampler.order(1).tolist())
    joined = math.ceil(competence(1.0) * size)
    assert set(range(joined)) <= seen


def test_ties_are_broken_by_the_seed_not_by_place():
    """Otherwise a dataset sorted by class would begin with one class."""
    pools = [set(CurriculumSampler([1.0] * 100, lambda t: 0.1, seed=seed).order(0).tolist()) for seed in range(3)]
    assert all(len(pool) == 10 for pool in pools)
    assert pools[0] != pools[1] != pools[2]
    assert max(pools[0]) > 20


def test_difficulties_count_by_rank_and_may_be_a_list_or_a_tensor():
    scores = [3.0, 1.0, 2.0, 10.0]
    by_list = CurriculumSampler(scores, Competence(3, 0.3))
    by_rank = CurriculumSampler(torch.tensor([2, 0, 1, 3]), Competence(3, 0.3))
    assert [by_list.order(e).tolist() for e in range(4)] == [by_rank.order(e).tolist() for e in range(4)]


def test_the_first_pool_is_never_empty():
    assert CurriculumSampler([1.0, 2.0, 0.5], lambda t: 0.0).order(0).tolist() == [2, 2, 2]
