"""CrossEntropyLoss: torch's where torch is defined, one denominator, no NaN."""

from __future__ import annotations

import itertools

import mpmath
import pytest
import torch
import torch.nn.functional as F

from firstlight.losses import CrossEntropyLoss, cross_entropy_loss
from firstlight.losses._floor import loss_floor

LOGITS = torch.tensor([[2, 0, -1], [0.5, 1.5, 0], [1, 1, 1], [0, 0, 3]], dtype=torch.float64)
TARGET = torch.tensor([0, 2, -100, 1])
WEIGHT = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
# Worked out in float64 from loss_i = (1-e) w_y nll_i + e/C sum_c w_c (-log p_c).
EXPECTED = {
    (None, 0.0): ([0.169846, 1.964369, 0, 3.094923], 5.229138, 1.743046),
    (None, 0.1): ([0.336513, 1.897702, 0, 2.994923], 5.229138, 1.743046),
    ("w", 0.0): ([0.169846, 5.893106, 0, 6.189846], 12.252799, 2.042133),
    ("w", 0.1): ([0.620164, 5.580003, 0, 5.889846], 12.090013, 2.015002),
}


@pytest.mark.parametrize(("weight", "smoothing"), EXPECTED)
def test_reference_values(weight, smoothing):
    each, total, mean = EXPECTED[weight, smoothing]
    for reduction, expected in (("none", each), ("sum", total), ("mean", mean)):
        loss = CrossEntropyLoss(WEIGHT if weight else None, label_smoothing=smoothing, reduction=reduction)
        actual = loss(LOGITS, TARGET)
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_probabilities_and_indices_share_a_denominator(smoothing):
    rows, classes = LOGITS[[0, 1, 3]], TARGET[[0, 1, 3]]
    one_hot = F.one_hot(classes, 3).double()
    loss = CrossEntropyLoss(WEIGHT, label_smoothing=smoothing)
    torch.testing.assert_close(loss(rows, one_hot), loss(rows, classes))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (5, 3, 4), (2, 3, 4, 4)])
def test_equals_torch_where_torch_is_defined(shape):
    logits = torch.randn(shape, requires_grad=True)
    index_shape = shape[1:] if len(shape) == 1 else shape[:1] + shape[2:]
    target = torch.randint(3, () if len(shape) == 1 else index_shape)
    probabilities = torch.rand(shape).softmax(0 if len(shape) == 1 else 1)
    for weight, smoothing, reduction in itertools.product((None, torch.rand(3)), (0.0, 0.2), ("mean", "sum", "none")):
        options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
        for aim in (target, probabilities):
            if aim is probabilities and weight is not None and reduction == "mean":
                continue  # the documented difference
            ours = cross_entropy_loss(logits, aim, **options)
            theirs = F.cross_entropy(logits, aim, **options)
            torch.testing.assert_close(ours, theirs)
            grads = [torch.autograd.grad(value.sum(), logits)[0] for value in (ours, theirs)]
            torch.testing.assert_close(*grads)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss_weight", [None, [1.0, 2.0, 3.0], [0.0, 1.0, 1.0]])
def test_a_batch_in_which_nothing_counts_is_zero(loss_weight, smoothing):
    logits = LOGITS.clone().requires_grad_()
    loss = CrossEntropyLoss(loss_weight, label_smoothing=smoothing)(logits, torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_class_of_weight_zero_alone_is_zero():
    assert CrossEntropyLoss([0.0, 1.0, 1.0])(LOGITS, torch.zeros(4, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_are_finite_and_right(dtype):
    logits = torch.tensor([[100.0, -100.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = CrossEntropyLoss()(logits, torch.tensor([1]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(200.0)
    torch.testing.assert_close(logits.grad.float(), torch.tensor([[1.0, -1.0, 0.0]]))


def test_against_mpmath():
    logits = torch.randn(6, 5, dtype=torch.float64) * 8
    target = torch.randint(5, (6,))
    with mpmath.workdps(40):
        rows = [[mpmath.mpf(float(z)) for z in row] for row in logits]
        exact = [mpmath.log(sum(map(mpmath.exp, row))) - row[int(y)] for row, y in zip(rows, target, strict=True)]
        expected = float(sum(exact) / 6)
    assert CrossEntropyLoss()(logits, target).item() == pytest.approx(expected, rel=1e-14)


def test_a_masked_class_that_is_not_asked_for_costs_nothing():
    logits = torch.tensor([[1.0, float("-inf"), 0.0]], requires_grad=True)
    loss = CrossEntropyLoss()(logits, torch.tensor([[0.5, 0.0, 0.5]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("target", [torch.zeros(4, 1, dtype=torch.long), torch.zeros(3), torch.zeros(4)])
def test_shapes_that_do_not_fit_are_refused(target):
    with pytest.raises(ValueError, match=r"target must be class indices of shape \(4,\)"):
        CrossEntropyLoss()(torch.zeros(4, 3), target)


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_named(label):
    with pytest.raises(ValueError, match=f"labels must be 0 to 2, for 3 logits; they go from .*{label}"):
        CrossEntropyLoss()(LOGITS, torch.tensor([0, label, -100, label]))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"reduction": "avg"}, "reduction"),
        ({"weight": [-1.0]}, "weight"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        CrossEntropyLoss(**options)


def lowest(loss, target, classes: int) -> float:
    """Search the lowest value by LBFGS in float64."""
    logits = torch.zeros(len(target), classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        search.zero_grad()
        value = loss(logits, target)
        value.backward()
        return value

    search.step(closure)
    return loss(logits, target).item()


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("target", [torch.tensor([0, 2, -100, 1]), torch.rand(4, 3).softmax(1)], ids=["index", "soft"])
def test_minimum_is_where_a_search_ends(weight, target):
    loss = CrossEntropyLoss(weight, label_smoothing=0.1)
    target = target if target.dtype == torch.long else target.double()
    assert loss.minimum(torch.zeros(4, 3), target).item() == pytest.approx(lowest(loss, target, 3), abs=1e-6)


def test_minimum_of_smoothing_in_closed_form():
    for classes, epsilon in ((10, 0.1), (1000, 0.1)):
        on, off = 1 - epsilon + epsilon / classes, epsilon / classes
        entropy = -(on * mpmath.log(on) + (classes - 1) * off * mpmath.log(off))
        measured = CrossEntropyLoss(label_smoothing=epsilon).minimum(torch.zeros(1, classes), torch.tensor([0]))
        assert measured.item() == pytest.approx(float(entropy), rel=1e-5)


@pytest.mark.parametrize(
    ("function", "prediction", "target", "options"),
    [
        (F.cross_entropy, torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), {"label_smoothing": 0.1}),
        (F.binary_cross_entropy_with_logits, torch.randn(5), torch.tensor([0.0, 1.0, 0.5, 0.2, 0.9]), {}),
        (F.binary_cross_entropy_with_logits, torch.randn(3), torch.rand(3), {"pos_weight": torch.tensor(3.0)}),
        (F.mse_loss, torch.randn(4, 2), torch.randn(4, 2), {}),
        (F.huber_loss, torch.randn(4), torch.randn(4), {"delta": 0.5}),
    ],
)
def test_floors_of_torch_losses_are_where_a_search_ends(function, prediction, target, options):
    guess = prediction.double().requires_grad_()
    aim = target.double() if target.is_floating_point() else target
    search = torch.optim.LBFGS([guess], max_iter=1000, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        search.zero_grad()
        value = function(guess, aim, **options)
        value.backward()
        return value

    search.step(closure)
    floor = loss_floor(function, prediction, target, **options).item()
    assert floor == pytest.approx(function(guess, aim, **options).item(), abs=1e-4)
    assert floor <= function(guess, aim, **options).item() + 1e-6
