"""Each measure against brute force, a closed form or numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from firstlight.measures import (
    batch_label_entropy,
    best_of_last,
    column_spreads,
    dead_units,
    duplicate_share,
    fall,
    identical_rows,
    is_simplex,
    label_signal,
    relative_norms,
    rising_share,
    saturated_share,
    shared_rows,
    spikes,
    spread,
    update_ratios,
)

NAN, INF = math.nan, math.inf


def with_holes(*shape: int) -> Tensor:
    values = torch.randn(*shape)
    values[0, 0], values[1, 1], values[2, 0] = NAN, INF, -INF
    return values


def test_spread_is_numpys_over_what_is_finite():
    values = with_holes(20, 3)
    finite = values.numpy().astype(np.float64)
    finite = finite[np.isfinite(finite)]
    expected = (finite.mean(), finite.std(), finite.min(), finite.max(), 3)
    assert spread(values) == pytest.approx(expected)


def test_spread_of_nothing_finite():
    read = spread(torch.tensor([NAN, INF]))
    assert read.nonfinite == 2
    assert all(math.isnan(value) for value in read[:4])


def test_spread_of_large_numbers_keeps_its_digits():
    """In float32 the square of 1e8 swallows a deviation of one."""
    assert spread(torch.tensor([16777214.0, 16777216.0])).std == 1.0


def test_column_spreads_are_numpys_over_what_is_finite():
    values = with_holes(20, 3)
    expected = np.nanstd(values.nan_to_num(NAN, NAN, NAN).double().numpy(), axis=0)
    assert column_spreads(values).numpy() == pytest.approx(expected)
    assert column_spreads(values.reshape(20, 3, 1)).shape == (3,)


def test_column_spreads_of_a_column_without_numbers():
    assert column_spreads(torch.full((4, 1), NAN)).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.long])
def test_shares_of_rows_by_counting(dtype):
    rows, others = torch.randint(0, 3, (40, 3)).to(dtype), torch.randint(0, 3, (30, 3)).to(dtype)
    seen, repeated = [], 0
    for row in rows.tolist():
        repeated += row in seen
        seen.append(row)
    assert duplicate_share(rows) == pytest.approx(repeated / 40)
    assert shared_rows(rows, others) == pytest.approx(sum(row in seen for row in others.tolist()) / 30)
    assert duplicate_share(rows[:0]) == shared_rows(rows, others[:0]) == 0.0


def test_label_entropy_of_even_labels_is_the_logarithm_of_their_number():
    assert batch_label_entropy([torch.arange(10), torch.arange(5)]) == pytest.approx(math.log(50) / 2)
    assert batch_label_entropy([torch.zeros(8)]) == 0.0


def test_a_line_of_numbers_is_explained_by_its_neighbours_as_brute_force_says():
    inputs = torch.randn(60, 3)
    target = inputs[:, 0] + 0.3 * torch.randn(60)
    x = ((inputs - inputs.mean(0)) / inputs.std(0, correction=0)).double()
    y = ((target - target.mean()) / target.std(correction=0)).double()
    error = 0.0
    for i in range(60):
        near = sorted((j for j in range(60) if j != i), key=lambda j: float((x[i] - x[j]).norm()))[:5]
        error += float((y[i] - y[near].mean()) ** 2) / 60
    found = label_signal(inputs, target, generator=torch.Generator().manual_seed(0), neighbors=5, permutations=99)
    assert found.gain == pytest.approx(1 - error, abs=1e-5)
    assert found.p_value == 1 / 100  # none of 99 permutations does as well


def test_classes_that_neighbours_tell():
    target = torch.arange(200) % 2
    inputs = torch.randn(200, 2) + 40 * target[:, None]
    told = label_signal(inputs, target, generator=torch.Generator().manual_seed(0))
    # all fifteen neighbours are of one class: share (15 + 1/2) / 16, and both priors are a half
    assert told.gain == pytest.approx(1 + math.log(15.5 / 16) / math.log(2), abs=1e-6)
    assert told.p_value == 1 / 101


@pytest.mark.parametrize("numbers", [False, True])
def test_p_values_of_labels_of_chance_are_uniform(numbers):
    generator = torch.Generator().manual_seed(0)
    p_values = []
    for _ in range(100):
        target = torch.randn(40) if numbers else torch.randint(0, 2, (40,))
        p_values.append(label_signal(torch.randn(40, 2), target, generator=generator, permutations=19).p_value)
    # uniform over 0.05, 0.1 ... 1: mean 0.525 with a deviation of 0.03, and 10 +- 3 at 0.1 or below
    assert np.mean(p_values) == pytest.approx(0.525, abs=0.1)
    assert sum(p_value <= 0.1 for p_value in p_values) <= 20


def test_one_class_has_no_signal():
    found = label_signal(torch.randn(20, 2), torch.zeros(20, dtype=torch.long), generator=torch.Generator())
    assert (found.gain, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("dim", [1, 2])
def test_dead_units_by_counting(dim):
    slopes = torch.ones(4, 5, 7)
    dead = {1: slopes[:, :2], 2: slopes[:, :, :3]}[dim]
    dead.zero_()
    assert dead_units(slopes) == pytest.approx({1: 2 / 5, 2: 3 / 7}[dim])


def test_a_unit_that_one_sample_at_one_place_wakes_is_not_dead():
    slopes = torch.zeros(4, 5, 3, 3)
    slopes[3, 2, 1, 1] = -1e-5
    assert dead_units(slopes) == pytest.approx(4 / 5)
    assert dead_units(torch.zeros(4)) == 1.0


def test_saturated_share_of_a_normal_is_its_tail():
    share = saturated_share(torch.randn(200_000), 2.5)
    assert float(share) == pytest.approx(math.erfc(2.5 / math.sqrt(2)), abs=1e-3)


def test_shares_are_told_from_scores():
    assert is_simplex(torch.randn(5, 4, 3).softmax(1))
    assert not is_simplex(torch.randn(5, 4, 3).softmax(2))
    assert is_simplex(torch.randn(5, 4, 3).softmax(2), dim=2)
    assert not is_simplex(torch.randn(5, 4).sigmoid())


def test_rows_alike():
    assert identical_rows(torch.full((4, 3, 2), 0.1))
    assert not identical_rows(torch.full((1, 3), 0.1)), "one unit is like itself"
    almost = torch.ones(4, 3)
    almost[2, 1] += 1e-6
    assert not identical_rows(almost)


def test_relative_norms_of_dense_and_sparse_gradients():
    embedding = torch.nn.Embedding(6, 3, sparse=True)
    embedding(torch.tensor([1, 1, 4])).square().sum().backward()
    dense = 2 * torch.zeros(6, 3).index_add(0, torch.tensor([1, 1, 4]), embedding.weight[[1, 1, 4]].detach())
    expected = float(dense.norm() / embedding.weight.detach().norm())
    weights = {"e": embedding.weight, "zero": torch.zeros(3)}
    found = relative_norms(weights, {"e": embedding.weight.grad, "zero": torch.ones(3)})
    assert found == {"e": pytest.approx(expected)}


def test_an_update_of_plain_sgd_is_rate_times_gradient():
    before, gradient = torch.randn(5, 4), torch.randn(5, 4)
    weight = before.clone().requires_grad_()
    weight.grad = gradient
    torch.optim.SGD([weight], lr=0.1).step()
    found = update_ratios({"w": before, "b": torch.full((9,), 0.9e-3)}, {"w": weight.detach(), "b": torch.ones(9)})
    assert found == {"w": pytest.approx(float(0.1 * gradient.norm() / before.norm()))}, "b starts near zero"


def test_curves():
    assert best_of_last([1.0, 5.0, NAN, 4.0, INF], window=4) == 4.0
    assert math.isnan(best_of_last([1.0, NAN], window=1))
    assert rising_share([1.0, 2.0, 2.0, 3.0, 1.0]) == 0.5
    assert rising_share([1.0]) == 0.0


def test_fall_is_the_lowest_median_over_the_first():
    losses = [4.0] * 20 + [2.0] * 50 + [1.0] * 50 + [8.0] * 200
    assert fall(losses) == 0.25
    assert math.isnan(fall(losses[:60])), "no window of fifty after the first twenty"
    assert math.isnan(fall([0.0] * 100)), "nothing to fall from"


def test_spikes_by_brute_force():
    series = np.exp(np.random.default_rng(0).normal(0, 0.02, 400))
    series[[150, 299]] = 5.0, 0.001
    series[[200, 310]] = 1.9, NAN  # less than twice, and no number
    expected = []
    for i in range(100, 400):
        logs = np.log(series[i - 100 : i])
        logs = np.sort(logs[np.isfinite(logs)])
        middle = logs[len(logs) // 2]
        deviation = 1.48 * np.sort(np.abs(logs - middle))[len(logs) // 2]
        usual = np.quantile(logs, 0.95, method="inverted_cdf")
        if np.log(series[i]) > max(usual + np.log(2), middle + 8 * deviation):
            expected.append(i)
    assert expected == [150]
    assert spikes(series.tolist()) == expected


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.7])
def test_losses_of_two_kinds_are_no_spikes(share):
    """A part of the batches is mixed, say: their losses are two to four times the others'."""
    chance = np.random.default_rng(0)
    series = np.where(chance.random(600) < share, chance.uniform(0.7, 1.4, 600), chance.normal(0.35, 0.01, 600))
    assert spikes(series.tolist()) == []
    series[400:403] = 5.0
    if share < 0.5:  # else they hide it in their own spread
        assert spikes(series.tolist()) == [400, 401, 402]


def test_noise_of_tiny_batches_is_no_spike():
    noisy = np.exp(np.random.default_rng(0).normal(0, 0.5, 400)).tolist()
    assert max(noisy) > 2 * np.median(noisy)
    assert spikes(noisy) == []
