"""BinaryCrossEntropyLoss: torch's on a smoothed target that is stated."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from firstlight.losses import BinaryCrossEntropyLoss, binary_cross_entropy_loss

LOGITS = torch.tensor([-3.0, -1.0, 0.0, 2.0])
TARGET = torch.tensor([1.0, 0.0, 1.0, 0.25])


def test_equals_torch_on_the_smoothed_target():
    for smoothing, weight, reduction in itertools.product(
        (0.0, 0.3), (None, torch.tensor(2.5)), ("mean", "sum", "none")
    ):
        smooth = TARGET * (1 - smoothing) + smoothing / 2
        ours = binary_cross_entropy_loss(
            LOGITS, TARGET, label_smoothing=smoothing, pos_weight=weight, reduction=reduction
        )
        theirs = F.binary_cross_entropy_with_logits(LOGITS, smooth, pos_weight=weight, reduction=reduction)
        torch.testing.assert_close(ours, theirs)


def test_smoothing_as_in_keras():
    """keras 3, BinaryCrossentropy(label_smoothing=0.1): the loss of a smoothed 1 at logit 100 is 0.05 * 100."""
    loss = BinaryCrossEntropyLoss(label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(loss(torch.tensor([100.0]), torch.tensor([1.0])), torch.tensor([5.0]))


@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        ([-1e9, -1e-9], [1.0, 0.0], 5e8),
        ([-1e9, -1e-9], [0.0, 1.0], 0.3465736),
        ([1e9, 1e-9], [1.0, 0.0], 0.3465736),
        ([0.0, 0.0], [1.0, 0.0], 0.6931472),
    ],
)
def test_agrees_with_optax(logits, target, expected):
    """Values of optax/losses/_classification_test.py, SigmoidCrossEntropyTest."""
    ours = binary_cross_entropy_loss(torch.tensor(logits), torch.tensor(target))
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_minimum_is_the_entropy_of_the_smoothed_target():
    """-0.05 ln 0.05 - 0.95 ln 0.95 = 0.198515"""
    loss = BinaryCrossEntropyLoss(label_smoothing=0.1)
    assert loss.minimum(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0])).item() == pytest.approx(0.198515, abs=1e-6)
    assert BinaryCrossEntropyLoss(pos_weight=[3.0]).minimum(torch.zeros(2), torch.tensor([0.0, 1.0])) < 1e-30


def test_weights_are_by_class():
    loss = BinaryCrossEntropyLoss(pos_weight=[1.0, 2.0, 4.0], reduction="none")
    ours = loss(torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(ours, torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]) * 0.6931472)


def test_targets_are_looked_at_inside_vmap_without_harm():
    each = torch.func.vmap(lambda z, t: binary_cross_entropy_loss(z, t))(LOGITS, TARGET)
    torch.testing.assert_close(each, binary_cross_entropy_loss(LOGITS, TARGET, reduction="none"))


def test_weighted_minimum_is_where_a_grid_ends():
    grid, target = torch.linspace(-12, 12, 20001), torch.tensor([0.0, 0.3, 1.0])
    loss = BinaryCrossEntropyLoss(label_smoothing=0.2, pos_weight=3.0, reduction="none")
    lowest = torch.stack([loss(grid, t.expand_as(grid)).min() for t in target])
    torch.testing.assert_close(loss.minimum(torch.zeros(3), target), lowest)


def test_no_target_at_all():
    """Torch: NaN."""
    assert binary_cross_entropy_loss(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
