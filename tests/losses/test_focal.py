"""Focal losses: exact in the tails, finite everywhere, and cross-entropy at gamma 0."""

from __future__ import annotations

import mpmath
import pytest
import torch
import torch.nn.functional as F

from firstlight.losses import BinaryFocalLoss, FocalLoss, binary_focal_loss, cross_entropy_loss, focal_loss
from firstlight.losses._focal_floor import lowest_focal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def loss_and_gradient(logit: float, *, dtype: torch.dtype = torch.float32, **options: float) -> tuple[float, float]:
    z = torch.tensor([logit], dtype=dtype, requires_grad=True)
    loss = binary_focal_loss(z, torch.ones_like(z), alpha=0.25, **options)
    loss.backward()
    return loss.item(), z.grad.item()


def exact(logit: float, gamma: float) -> tuple[float, float]:
    """0.25 (1 - p)^gamma (-log p) and its derivative, at target 1."""
    mpmath.mp.dps = 40

    def of(z: mpmath.mpf) -> mpmath.mpf:
        p = 1 / (1 + mpmath.exp(-z))
        return -((1 / (1 + mpmath.exp(z))) ** gamma) * mpmath.log(p) / 4

    return float(of(mpmath.mpf(logit))), float(mpmath.diff(of, mpmath.mpf(logit), h=mpmath.mpf("1e-15")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_a_wrong_answer_is_pulled_with_full_force(dtype, gamma):
    """keras clips p at 1e-7: at z = -100 its loss is 16 instead of 100 and its gradient 0."""
    assert loss_and_gradient(-100.0, dtype=dtype, gamma=gamma) == (25.0, -0.25)


@pytest.mark.parametrize(
    ("logit", "gamma", "loss"), [(0.0, 2.0, 0.0433217), (20.0, 2.0, 2.19e-27), (4.0, 2.0, None), (20.0, 0.5, None)]
)
def test_reference_values(logit, gamma, loss):
    ours = loss_and_gradient(logit, gamma=gamma)
    truth = exact(logit, gamma)
    if loss is not None:
        assert ours[0] == pytest.approx(loss, rel=2e-3)
    assert ours == pytest.approx(truth, rel=1e-6)


def test_gradient_below_gamma_one_survives_a_saturated_probability():
    """The formula of torchvision has a NaN gradient here; the true one is -3.5e-14."""
    assert loss_and_gradient(20.0, gamma=0.5)[1] == pytest.approx(-3.5e-14, rel=2e-2)
    assert loss_and_gradient(20.0, gamma=0.0)[1] == pytest.approx(-5.2e-10, rel=2e-2)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("logit", [-30.0, -4.0, -0.5, 0.0, 1.0, 8.0, 17.0, 40.0])
def test_relative_error_against_many_digits(logit, gamma):
    assert loss_and_gradient(logit, gamma=gamma) == pytest.approx(exact(logit, gamma), rel=3e-6)


def test_small_tables():
    logits, target = torch.tensor([-3.0, -1.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    expected = torch.tensor([2.76628044, 0.02265806, 0.17328680, 0.00180356])
    torch.testing.assert_close(binary_focal_loss(logits, target, reduction="none"), expected, rtol=1e-5, atol=1e-8)
    logits, labels = torch.tensor([[2.0, 0, -1], [0.5, 1.5, 0]]), torch.tensor([0, 2])
    expected = torch.tensor([0.00414426, 1.45202157])
    torch.testing.assert_close(focal_loss(logits, labels, reduction="none"), expected, rtol=2e-6, atol=0)


def test_binary_agrees_with_keras():
    """Values of keras/src/losses/losses_test.py, BinaryFocalCrossentropyTest."""
    logits = torch.logit(torch.tensor([[0.9, 0.8], [0.7, 0.2]]))
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    each = binary_focal_loss(logits, target, reduction="none")
    torch.testing.assert_close(each.mean(1), torch.tensor([0.515547, 0.020513]), rtol=1e-5, atol=1e-6)
    assert binary_focal_loss(logits, target).item() == pytest.approx(0.268, abs=5e-4)
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]])
    target = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert binary_focal_loss(logits, target, gamma=3.0).item() == pytest.approx(0.799, abs=5e-4)


def test_softmax_agrees_with_keras():
    """Values of keras/src/losses/losses_test.py, CategoricalFocalCrossentropyTest (alpha 0.25, gamma 2)."""
    logits = torch.tensor([[8.0, 1.0, 1.0], [0.0, 9.0, 1.0], [2.0, 3.0, 5.0]])
    loss = FocalLoss(alpha=[0.25] * 3, reduction="none")
    expected = torch.tensor([1.5096224e-09, 2.4136547e-11, 1.0360638e-03])
    torch.testing.assert_close(loss(logits, torch.arange(3)), expected, rtol=1e-3, atol=0)  # theirs subtract from 1
    smooth = FocalLoss(alpha=[0.25] * 3, label_smoothing=0.1)
    assert smooth(torch.tensor([[4.9, -0.5, 2.05]]), torch.tensor([0])).item() == pytest.approx(0.06685, abs=5e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_equals_the_formula_of_torchvision_where_that_is_right(gamma):
    """Soft targets too: p_t = p t + (1 - p) (1 - t), alpha_t alike."""
    z, t = torch.randn(100, dtype=torch.float64), torch.rand(100, dtype=torch.float64)
    p = z.sigmoid()
    p_t = p * t + (1 - p) * (1 - t)
    alpha_t = 0.3 * t + 0.7 * (1 - t)
    theirs = alpha_t * F.binary_cross_entropy_with_logits(z, t, reduction="none") * (1 - p_t) ** gamma
    torch.testing.assert_close(binary_focal_loss(z, t, gamma=gamma, alpha=0.3, reduction="none"), theirs)


def test_extreme_logits_with_soft_labels_have_finite_hessians():
    """The case of optax/losses/_classification_test.py, test_extreme_logits_finite_gradients."""
    logits = torch.tensor([100.0, -100.0, 75.0, -75.0, 50.0, -50.0])
    labels = torch.tensor([0.9, 0.1, 0.8, 0.2, 1.0, 0.0])
    hessian = torch.autograd.functional.hessian(lambda z: binary_focal_loss(z, labels, gamma=0.5), logits)
    assert torch.isfinite(hessian).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_second_derivatives_are_finite_anywhere(gamma):
    z = torch.tensor([-1e4, -104.0, -89.0, -40.0, 0.0, 40.0, 89.0, 104.0, 1e4], requires_grad=True)
    for target in (0.0, 1.0, 0.3):
        loss = binary_focal_loss(z, torch.full_like(z, target), gamma=gamma)
        (first,) = torch.autograd.grad(loss, z, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), z)
        assert torch.isfinite(first).all()
        assert torch.isfinite(second).all()


def test_the_slope_kept_from_forward_is_the_one_that_can_be_differentiated_again():
    z, t = 5 * torch.randn(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    for gamma in (0.0, 0.5, 1.0, 2.0, 3.3):
        leaf = z.clone().requires_grad_()
        loss = binary_focal_loss(leaf, t, gamma=gamma)
        (kept,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        (again,) = torch.autograd.grad(loss, leaf, create_graph=True)
        torch.testing.assert_close(kept, again.detach(), rtol=1e-12, atol=1e-15)


def test_targets_can_have_gradients_too():
    z, t = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(binary_focal_loss, (z.requires_grad_(), t.requires_grad_()))


def test_per_sample_gradients():
    z, t = torch.randn(6), (torch.rand(6) > 0.5).float()
    one = torch.func.grad(lambda logit, target: binary_focal_loss(logit, target))
    leaf = z.clone().requires_grad_()
    binary_focal_loss(leaf, t, reduction="sum").backward()
    torch.testing.assert_close(torch.func.vmap(one)(z, t), leaf.grad)


def test_retinanet_divides_by_the_positives():
    logits, target = torch.randn(2, 50), (torch.rand(2, 50) < 0.1).float()
    total = binary_focal_loss(logits, target, reduction="sum")
    positives = BinaryFocalLoss(normalizer="positives")
    torch.testing.assert_close(positives(logits, target), total / target.sum())
    none = torch.zeros(2, 50)
    torch.testing.assert_close(positives(logits, none), binary_focal_loss(logits, none, reduction="sum"))


def test_gamma_zero_is_cross_entropy():
    logits, labels = torch.randn(6, 5, 3), torch.randint(5, (6, 3))
    labels[0, 0] = -100
    soft = torch.randn(6, 5, 3).softmax(1)
    for smoothing in (0.0, 0.2):
        for target in (labels, soft):
            ours = focal_loss(logits, target, gamma=0.0, label_smoothing=smoothing)
            torch.testing.assert_close(ours, cross_entropy_loss(logits, target, label_smoothing=smoothing))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_two_classes_are_the_binary_loss(gamma):
    z, labels = 5 * torch.randn(20), torch.randint(2, (20,))
    logits = torch.stack([torch.zeros(20), z], 1)
    expected = binary_focal_loss(z, labels.float(), gamma=gamma, reduction="none")
    torch.testing.assert_close(focal_loss(logits, labels, gamma=gamma, reduction="none"), expected)
    one_hot = F.one_hot(labels, 2).float()
    torch.testing.assert_close(focal_loss(logits, one_hot, gamma=gamma, reduction="none"), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_one_hot_targets_are_indices(gamma):
    logits, labels = 10 * torch.randn(30, 4), torch.randint(4, (30,))
    alpha = torch.tensor([0.1, 1.0, 2.0, 3.0])
    by_index = focal_loss(logits, labels, gamma=gamma, alpha=alpha, reduction="none")
    by_probability = focal_loss(logits, F.one_hot(labels, 4).float(), gamma=gamma, alpha=alpha, reduction="none")
    torch.testing.assert_close(by_index, by_probability, rtol=2e-5, atol=0)


def test_softmax_tail_keeps_its_digits():
    """1 - p subtracted is 0 in float32 from a margin of 17 on."""
    loss = focal_loss(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(4 * exact(20.0, 2.0)[0], rel=1e-6)


def test_ignored_targets_leave_sum_and_denominator():
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, -100, 2, -100])
    for smoothing in (0.0, 0.1):
        ours = focal_loss(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(ours, focal_loss(logits[[0, 2]], labels[[0, 2]], label_smoothing=smoothing))
        nothing = focal_loss(logits, torch.full((4,), -100), label_smoothing=smoothing)
        assert nothing == 0
        assert not torch.autograd.grad(nothing, logits)[0].any()


def test_floor_without_focus_is_the_entropy():
    soft = torch.rand(10, 6, dtype=torch.float64).softmax(1)
    soft[0] = torch.tensor([0, 0.5, 0, 0.5, 0, 0])
    entropy = torch.special.entr(soft).sum(1)
    torch.testing.assert_close(lowest_focal(soft, 0.0), entropy, rtol=1e-9, atol=1e-12)
    assert (lowest_focal(torch.eye(3), 2.0) < 1e-30).all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_floor_is_where_descent_ends(gamma):
    weight = torch.rand(1, 5, dtype=torch.float64)
    logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        descent.zero_grad()
        loss = focal_loss(logits, weight, gamma=gamma)
        loss.backward()
        return loss

    descent.step(closure)
    torch.testing.assert_close(lowest_focal(weight, gamma)[0], closure().detach(), rtol=1e-9, atol=0)


def test_binary_floor_is_where_a_grid_ends():
    targets = torch.tensor([0.0, 1.0, 0.3, 0.3, 0.9], dtype=torch.float64)
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    for gamma in (0.5, 2.0):
        each = [binary_focal_loss(grid, t.expand_as(grid), gamma=gamma, reduction="none").min() for t in targets]
        floors = BinaryFocalLoss(gamma=gamma, reduction="none").minimum(torch.zeros(5, dtype=torch.float64), targets)
        torch.testing.assert_close(floors, torch.stack(each), rtol=1e-6, atol=1e-4)


def test_per_sample_gradients_over_classes():
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    one = torch.func.grad(lambda z, y: focal_loss(z.unsqueeze(0), y.unsqueeze(0)))
    leaf = logits.clone().requires_grad_()
    focal_loss(leaf, labels, reduction="sum").backward()
    torch.testing.assert_close(torch.func.vmap(one)(logits, labels), leaf.grad)


def test_margin_kept_from_forward_gives_the_gradient_that_can_be_differentiated_again():
    logits, labels = (10 * torch.randn(8, 5, 2)).requires_grad_(), torch.randint(5, (8, 2))
    loss = focal_loss(logits, labels, gamma=1.5)
    (kept,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (again,) = torch.autograd.grad(loss, logits, create_graph=True)
    torch.testing.assert_close(kept, again.detach(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_target_at_all(smoothing):
    assert focal_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), label_smoothing=smoothing) == 0
    assert binary_focal_loss(torch.zeros(0), torch.zeros(0)) == 0
