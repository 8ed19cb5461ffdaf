"""Schedules are torch's where torch has the same, and optax's and the closed forms of papers where it has not.

The laws of all of them are in tests/contracts/test_schedules.py.
"""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR

from firstlight.schedules import (
    Constant,
    CosineAnnealing,
    Joined,
    OneCycle,
    StepDecay,
    WarmupCosine,
    WarmupInverseSqrt,
    WarmupLinear,
    WarmupStableDecay,
    lr_lambda,
)


def torch_factors(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_step_decay_is_torch_step_lr():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.StepLR(o, 10, gamma=0.3), 45)
    assert [StepDecay(every=10, gamma=0.3).factor(t) for t in range(45)] == pytest.approx(expected, rel=1e-12)


def test_cosine_is_torch_until_the_end_and_then_stays():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50), 51)
    assert [CosineAnnealing().factor(t, 50) for t in range(51)] == pytest.approx(expected, abs=1e-12)
    again = torch_factors(lambda o: CosineAnnealingLR(o, 100), 201)
    assert [again[t] for t in (100, 150, 200)] == pytest.approx([0.0, 0.5, 1.0], abs=1e-12)
    assert [CosineAnnealing().factor(t, 100) for t in (100, 150, 200)] == [0.0, 0.0, 0.0]


def test_a_rate_of_zero_that_torch_refuses_and_others_waste_a_step_on():
    with pytest.raises(ValueError, match="greater than 0"):
        torch_factors(lambda o: LinearLR(o, start_factor=0.0), 1)
    assert [WarmupLinear(warmup=4).factor(t, 100) for t in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert WarmupCosine(warmup=1).factor(0, 100) == 1.0  # where pl_bolts divides by warmup - 1


def test_warmup_cosine_is_linear_then_cosine():
    schedule, warmup, total = WarmupCosine(warmup=10, floor=0.1), 10, 110
    cosine = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0.1), 101)
    expected = [(t + 1) / warmup for t in range(warmup)] + cosine
    assert [schedule.factor(t, total) for t in range(total + 1)] == pytest.approx(expected, abs=1e-12)


def warmup_then(after, warmup: int):
    """torch's own parts, put together: up from 1/W to 1 at step W - 1, which is where ours peaks, then ``after``."""

    def make(optimizer):
        up = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        return SequentialLR(optimizer, [up, after(optimizer)], milestones=[warmup])

    return make


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning", "ignore:.*lr_scheduler.step:UserWarning")
def test_warmups_are_torch_sequences():
    expected = torch_factors(warmup_then(lambda o: CosineAnnealingLR(o, 100, eta_min=0.1), 10), 111)
    assert [WarmupCosine(warmup=10, floor=0.1).factor(t, 110) for t in range(111)] == pytest.approx(expected, rel=1e-9)
    expected = torch_factors(warmup_then(lambda o: LinearLR(o, 1.0, 0.1, total_iters=100), 10), 131)
    assert [WarmupLinear(warmup=10, floor=0.1).factor(t, 110) for t in range(131)] == pytest.approx(expected, rel=1e-9)


def test_warmup_linear_is_the_closed_form_of_bert():
    """transformers.get_linear_schedule_with_warmup: (T - t) / (T - W) after the warm-up."""
    expected = [max(0.0, (110 - t) / (110 - 10)) for t in range(10, 130)]
    assert [WarmupLinear(warmup=10).factor(t, 110) for t in range(10, 130)] == pytest.approx(expected, abs=1e-12)


def test_decays_are_optax():
    """Numbers of optax 0.2.8: warmup_cosine_decay_schedule(0, 1, 10, 110, 0.1), linear_schedule(1, 0.1, 80, 20)."""
    golden = {10: 1.0, 35: 0.8681980515339464, 60: 0.55, 85: 0.23180194846605365, 110: 0.1, 200: 0.1}
    schedule = WarmupCosine(warmup=10, floor=0.1)
    assert {t: schedule.factor(t, 110) for t in golden} == pytest.approx(golden, rel=1e-12)
    golden = {20: 1.0, 40: 0.775, 60: 0.55, 99: 0.11124999999999996, 100: 0.1, 150: 0.1}
    assert {t: WarmupLinear(20, 0.1).factor(t, 100) for t in golden} == pytest.approx(golden, rel=1e-12)
    stable = WarmupStableDecay(warmup=5, decay=80, floor=0.1)
    assert {t: stable.factor(t, 100) for t in golden} == pytest.approx(golden, rel=1e-12)


def test_inverse_sqrt_is_the_paper():
    """arXiv:1706.03762, equation 3: d ** -0.5 * min(s ** -0.5, s * W ** -1.5), relative to its peak at s = W."""

    def paper(s: int, d: int = 512, warmup: int = 4000) -> float:
        return d**-0.5 * min(s**-0.5, s * warmup**-1.5)

    schedule = WarmupInverseSqrt(warmup=4000)
    for s in (1, 100, 3999, 4000, 4001, 16_000, 100_000):
        assert schedule.factor(s - 1) == pytest.approx(paper(s) / paper(4000), rel=1e-12)


def test_stable_decay_has_three_phases():
    schedule = WarmupStableDecay(warmup=0.1, decay=0.2, floor=0.5)
    factors = [schedule.factor(t, 100) for t in range(102)]
    assert factors[:10] == pytest.approx([(t + 1) / 10 for t in range(10)])
    assert set(factors[10:81]) == {1.0}
    assert factors[81:101] == pytest.approx([1 - 0.5 * k / 20 for k in range(1, 21)])
    assert factors[101] == 0.5
    crowded = WarmupStableDecay(warmup=30, decay=20)
    assert [crowded.factor(t, 40) for t in (29, 30, 35, 40)] == [1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize(("total", "warmup"), [(100, 0.3), (40, 0.25), (1000, 0.45)])
def test_one_cycle_is_torch_and_goes_on_after_the_end(shape, three_phase, total, warmup):
    def make(optimizer):
        anneal = {"cosine": "cos"}.get(shape, shape)
        return OneCycleLR(
            optimizer,
            1.0,
            total,
            pct_start=warmup,
            anneal_strategy=anneal,
            cycle_momentum=False,
            three_phase=three_phase,
        )

    expected = torch_factors(make, total - 1)  # one more would be torch's last step, where it raises
    schedule = OneCycle(warmup=warmup, shape=shape, three_phase=three_phase)
    assert [schedule.factor(t, total) for t in range(total - 1)] == pytest.approx(expected, rel=1e-9)
    assert schedule.factor(total - 1, total) == schedule.factor(total + 50, total) == 4e-6


def test_one_cycle_is_optax():
    """optax 0.2.8: cosine_onecycle_schedule(100, 1.0, 0.3, 25, 1e4), whose 100 are steps between 101 points."""
    golden = {0: 0.04, 10: 0.28, 15: 0.52, 29: 0.9973705097767712, 30: 1.0, 31: 0.9994965352845243}
    golden |= {65: 0.500002, 99: 0.0005074647154757879, 100: 4e-06, 130: 4e-06}
    schedule = OneCycle(warmup=31)
    assert {t: schedule.factor(t, 101) for t in golden} == pytest.approx(golden, rel=1e-12)


def test_joined_is_optax_and_torch():
    """optax 0.2.8: join_schedules([linear_schedule(1, 0.5, 10), cosine_decay_schedule(0.5, 20)], [10])."""
    golden = {0: 1.0, 5: 0.75, 9: 0.55, 10: 1.0, 15: 0.8535533905932737, 20: 0.5, 30: 0.0, 50: 0.0}
    joined = Joined([WarmupLinear(warmup=0, floor=0.5), CosineAnnealing()], boundaries=[10])
    # optax's cosine starts at 0.5; ours at the base rate: twice the number
    assert {t: joined.factor(t, 30) for t in golden} == pytest.approx(golden, abs=1e-12)


def test_joined_resolves_what_it_holds():
    inner = Joined([Constant(warmup="1ep"), CosineAnnealing()], boundaries=["2ep"])
    joined = Joined([inner, WarmupLinear(warmup="50ba")], boundaries=["5ep"])
    found = joined.resolve(steps_per_epoch=10, steps_per_batch=0.5)
    assert found == Joined([Joined([Constant(10), CosineAnnealing()], [20]), WarmupLinear(25)], boundaries=[50])
    assert [found.factor(t, 200) for t in (0, 9, 20, 35, 50, 74, 200)] == pytest.approx([0.1, 1, 1, 0.5, 0.04, 1, 0])
    with pytest.raises(ValueError, match="only the trainer knows"):
        joined.factor(0, 200)


def test_joined_in_a_run_of_a_few_steps():
    """A smoke test of one step must start, whatever the boundaries are."""
    joined = Joined([Constant(warmup=10), WarmupLinear(warmup=0), Constant()], boundaries=[100, 0.9])
    assert 0.0 < joined.factor(0, 1) <= 1.0
    with pytest.raises(ValueError, match="boundaries must be rising"):
        lr_lambda(joined, 50)


@pytest.mark.parametrize("step", [0, 24, 49])
def test_restarts_by_joining(step):
    """Warm restarts (arXiv:1608.03983) are cosines one after another."""
    restarts = Joined([CosineAnnealing()] * 3, boundaries=[50, 100])
    for cycle in range(3):
        assert restarts.factor(50 * cycle + step, 150) == CosineAnnealing().factor(step, 50)


@pytest.mark.parametrize("make", [WarmupCosine, WarmupLinear])
def test_a_warmup_longer_than_the_run_is_refused_by_lr_lambda_and_shortened_by_factor(make):
    with pytest.raises(ValueError, match=r"warmup must be at most the 40 optimizer steps .*; got 50"):
        lr_lambda(make(warmup=50), 40)
    assert [make(warmup=50).factor(t, 40) for t in (0, 39, 40)] == [1 / 40, 1.0, 1.0]


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
