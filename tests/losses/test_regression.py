"""MSELoss, L1Loss, HuberLoss: torch's with a mask, and no silent broadcast."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight import losses

PAIRS = [
    (losses.MSELoss(), nn.MSELoss()),
    (losses.L1Loss(), nn.L1Loss()),
    (losses.HuberLoss(delta=0.3), nn.HuberLoss(delta=0.3)),
    (losses.MSELoss(reduction="sum"), nn.MSELoss(reduction="sum")),
    (losses.HuberLoss(reduction="none"), nn.HuberLoss(reduction="none")),
]
OURS = [ours for ours, _ in PAIRS[:3]]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_equals_torch(ours, theirs):
    prediction, target = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    values = [loss(prediction, target) for loss in (ours, theirs)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), prediction)[0] for value in values))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS[:3])
def test_mask_is_selection(ours, theirs):
    prediction, target, mask = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4), torch.rand(5, 4) > 0.4
    values = [ours(prediction, target, mask=mask), theirs(prediction[mask], target[mask])]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, prediction)[0] for value in values))


@pytest.mark.parametrize("loss", OURS)
def test_mask_of_leading_dimensions_decides_whole_samples(loss):
    prediction, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    torch.testing.assert_close(loss(prediction, target, mask=mask), loss(prediction[mask], target[mask]))


@pytest.mark.parametrize("loss", OURS)
def test_what_is_masked_may_be_anything(loss):
    prediction = torch.tensor([1.0, float("inf"), 2.0], requires_grad=True)
    target = torch.tensor([3.0, float("nan"), float("nan")])
    value = loss(prediction, target, mask=torch.tensor([True, False, False]))
    value.backward()
    torch.testing.assert_close(value, loss(prediction[:1], target[:1]))
    assert prediction.grad[0] != 0
    assert prediction.grad[1:].tolist() == [0, 0]


@pytest.mark.parametrize("loss", OURS)
@pytest.mark.parametrize("size", [0, 3])
def test_nothing_that_counts_costs_nothing(loss, size):
    prediction, target = torch.randn(size, requires_grad=True), torch.randn(size)
    value = loss(prediction, target, mask=torch.zeros(size, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert not prediction.grad.any()
    assert loss(prediction[:0], target[:0]) == 0


@pytest.mark.parametrize("loss", OURS)
def test_columns_against_rows_do_not_broadcast(loss):
    """Torch warns and compares every pair: 2.5 instead of 0 for arange(4) against itself."""
    column = torch.arange(4.0).reshape(4, 1)
    with pytest.raises(ValueError, match=r"shape of prediction, \(4, 1\); got \(4,\); .*target.reshape\(4, 1\)"):
        loss(column, column.flatten())
    assert loss(column, column) == 0


def test_huber_is_smooth_l1_times_delta():
    prediction, target = 3 * torch.randn(50), torch.randn(50)
    expected = 0.7 * losses.SmoothL1Loss(beta=0.7)(prediction, target)
    torch.testing.assert_close(losses.HuberLoss(delta=0.7)(prediction, target), expected)


def test_huber_agrees_with_optax():
    """Values of optax/losses/_regression_test.py, HuberLossTest."""
    prediction = torch.tensor([-2.0, 0.5, 0.0, 0.5, 2.0, 4.0, 132.0])
    target = torch.tensor([0.0, -0.5, 0.0, 1.0, 1.0, 2.0, 0.3])
    expected = torch.tensor([1.5, 0.5, 0.0, 0.125, 0.5, 1.5, 131.2])
    torch.testing.assert_close(losses.HuberLoss(reduction="none")(prediction, target), expected)
