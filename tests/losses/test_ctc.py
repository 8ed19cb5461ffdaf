"""CTCLoss: torch's where a target can be aligned; what cannot be aligned leaves the mean; logits are refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from losses.oracles import torch_reference
from torch import Tensor

from firstlight.losses import CTCLoss, ctc_loss

# Uniform logits over C=3, blank 0: (target, frames, -log of the share of the 3**T paths that spell it)
UNIFORM = [
    ([1], 1, 1.098612),
    ([1], 2, 1.098612),
    ([1, 2], 2, 2.197225),
    ([1, 1], 3, 3.295837),
    ([1, 2], 4, 1.686399),
    ([1, 1], 4, 2.785011),
    ([], 4, 4.394449),
]


def uniform(frames: int, num: int = 1) -> Tensor:
    return torch.zeros(frames, num, 3).log_softmax(-1)


def by_paths(log_probs: Tensor, target: list[int]) -> float:
    """Return the loss by trying all paths: drop repeats, then blanks, and see whether the target is left."""
    frames, num_classes = log_probs.shape
    total = 0.0
    for path in itertools.product(range(num_classes), repeat=frames):
        if [label for label, _ in itertools.groupby(path) if label] == target:
            total += math.exp(sum(float(log_probs[t, label]) for t, label in enumerate(path)))
    return -math.log(total)


@pytest.mark.parametrize(("target", "frames", "expected"), UNIFORM)
def test_reference_values(target, frames, expected):
    targets = torch.tensor([target], dtype=torch.long)
    for reduction, value in (("sum", expected), ("none", expected), ("mean", expected / max(1, len(target)))):
        found = ctc_loss(uniform(frames), targets, [frames], [len(target)], reduction=reduction)
        assert found.sum().item() == pytest.approx(value, rel=1e-6)
    assert by_paths(uniform(frames)[:, 0], target) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("target", [[1], [2, 1], [1, 1], [1, 2, 2], []])
def test_equals_the_sum_over_all_paths(target):
    log_probs = torch.randn(5, 1, 3, dtype=torch.float64).log_softmax(-1)
    found = ctc_loss(log_probs, torch.tensor([target], dtype=torch.long), [5], [len(target)], reduction="sum")
    assert found.item() == pytest.approx(by_paths(log_probs[:, 0], target), rel=1e-9)


def test_equals_the_reference_of_torch():
    reference = torch_reference("ctcloss_reference")
    log_probs = torch.randn(8, 3, 4, dtype=torch.float64).log_softmax(-1)
    targets, lengths = torch.randint(1, 4, (3, 3)), torch.tensor([3, 2, 1])
    for reduction in ("mean", "sum", "none"):
        ours = ctc_loss(log_probs, targets, [8, 7, 8], lengths, reduction=reduction)
        torch.testing.assert_close(ours, reference(log_probs, targets, [8, 7, 8], lengths, reduction=reduction))


def test_equals_torch_with_its_gradients_in_every_form_of_targets():
    logits = torch.randn(9, 4, 5, requires_grad=True)
    targets, inputs, lengths = torch.randint(1, 5, (4, 3)), [9, 8, 9, 7], [3, 2, 1, 3]
    in_one_row = torch.cat([row[:length] for row, length in zip(targets, lengths, strict=True)])
    for reduction in ("mean", "sum", "none"):
        theirs = F.ctc_loss(logits.log_softmax(-1), targets, inputs, lengths, reduction=reduction)
        expected = torch.autograd.grad(theirs.sum(), logits)
        for aim in (targets, in_one_row, targets.int()):
            ours = CTCLoss(reduction=reduction)(logits.log_softmax(-1), aim, inputs, torch.tensor(lengths))
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(torch.autograd.grad(ours.sum(), logits), expected)


def test_without_a_batch():
    log_probs = torch.randn(5, 3).log_softmax(-1)
    target = torch.tensor([1, 2])
    for reduction in ("mean", "sum", "none"):
        ours = ctc_loss(log_probs, target, torch.tensor(5), torch.tensor(2), reduction=reduction)
        torch.testing.assert_close(
            ours, F.ctc_loss(log_probs, target, torch.tensor(5), torch.tensor(2), reduction=reduction)
        )


INFEASIBLE = torch.tensor([[1, 1], [1, 2]]), [2, 2], [2, 2]  # two equal labels need three frames


def test_a_sample_that_cannot_be_aligned_leaves_the_mean():
    logits = torch.zeros(2, 2, 3, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    loss = ctc_loss(log_probs, *INFEASIBLE)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)
    # torch keeps counting it
    assert F.ctc_loss(log_probs, *INFEASIBLE, zero_infinity=True).item() == pytest.approx(0.549306, abs=1e-6)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert (gradient[:, 0] == 0).all()
    alone = torch.zeros(2, 1, 3, requires_grad=True)
    expected = torch.autograd.grad(ctc_loss(alone.log_softmax(-1), INFEASIBLE[0][1:], [2], [2]), alone)[0]
    torch.testing.assert_close(gradient[:, 1:], expected)
    assert ctc_loss(log_probs, *INFEASIBLE, reduction="none").tolist() == [0, pytest.approx(2 * math.log(3))]


def test_a_batch_of_none_that_can_be_aligned_is_0_with_zero_gradients():
    logits = torch.randn(2, 2, 3, requires_grad=True)
    loss = ctc_loss(logits.log_softmax(-1), torch.tensor([[1, 1], [2, 2]]), [2, 2], [2, 2])
    assert loss == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


def test_kept_it_is_infinite_as_in_torch():
    loss = CTCLoss(drop_infeasible=False, reduction="none")(uniform(2, 2), *INFEASIBLE)
    assert loss.tolist() == [math.inf, pytest.approx(2 * math.log(3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_raw_logits_are_refused_and_log_probabilities_are_not(dtype):
    logits = torch.randn(30, 4, 40) * 5
    rest = torch.randint(1, 40, (4, 6)), [30] * 4, [6] * 4
    assert torch.isfinite(ctc_loss(logits.log_softmax(-1).to(dtype), *rest))
    with pytest.raises(ValueError, match=r"logsumexp is 0: call \.log_softmax\(-1\)"):
        ctc_loss(logits.to(dtype), *rest)
    with pytest.raises(ValueError, match="logsumexp"):
        ctc_loss(logits.softmax(-1).to(dtype), *rest)
    ctc_loss(logits, *rest, validate=False)


def test_frames_beyond_the_length_may_hold_anything():
    log_probs = uniform(4, 1)
    log_probs[3] = 50.0
    assert ctc_loss(log_probs, torch.tensor([[1]]), [3], [1]).isfinite()


def test_a_diverged_model_is_not_called_raw_logits():
    assert ctc_loss(torch.full((4, 1, 3), math.nan), torch.tensor([[1]]), [4], [1]).isnan()


def test_what_pads_the_targets_may_be_anything():
    kept = ctc_loss(uniform(4, 1), torch.tensor([[1, -1]]), [4], [1])
    assert kept == ctc_loss(uniform(4, 1), torch.tensor([[1, 99]]), [4], [1])
    # pads equal to the last label, or to each other, are no repeats
    assert ctc_loss(uniform(1, 1), torch.tensor([[1, 1, 1]]), [1], [1]).item() == pytest.approx(math.log(3), rel=1e-6)
