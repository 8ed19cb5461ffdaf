"""SequenceCrossEntropyLoss: every token that counts weighs the same."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from firstlight.losses import SequenceCrossEntropyLoss, sequence_cross_entropy_loss

LOGITS = torch.tensor([[2, 0, -1], [0.5, 1.5, 0], [1, 1, 1], [0, 0, 3]], dtype=torch.float64)
TARGET = torch.tensor([0, 2, -100, 1])
EXPECTED = {
    0.0: ([0.169846, 1.964369, 0, 3.094923], 5.229138, 1.743046),
    0.1: ([0.336513, 1.897702, 0, 2.994923], 5.229138, 1.743046),
}


@pytest.mark.parametrize("smoothing", EXPECTED)
def test_reference_values_in_any_arrangement(smoothing):
    each, total, mean = EXPECTED[smoothing]
    for shape in ((4,), (2, 2), (1, 4), (2, 1, 2)):
        for reduction, expected in (("none", each), ("sum", total), ("mean", mean)):
            loss = SequenceCrossEntropyLoss(label_smoothing=smoothing, reduction=reduction)
            actual = loss(LOGITS.reshape(*shape, 3), TARGET.reshape(shape)).reshape(-1).squeeze()
            torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_mean_is_over_tokens_not_over_sequences():
    """Nine tokens and one: the mean of the two means is not the mean."""
    logits, target = torch.randn(2, 9, 5), torch.randint(5, (2, 9))
    target[1, 1:] = -100
    tokens = torch.cat(
        [F.cross_entropy(logits[0], target[0], reduction="none"), F.cross_entropy(logits[1], target[1])[None]]
    )
    torch.testing.assert_close(sequence_cross_entropy_loss(logits, target), tokens.mean())


def test_z_loss_is_the_squared_logarithm_of_the_sum():
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    target = torch.tensor([[1, 2, -100]])
    with_z = sequence_cross_entropy_loss(logits, target, z_loss=0.5)
    assert with_z.item() == pytest.approx(math.log(4) + 0.5 * math.log(4) ** 2, rel=1e-6)
    plain = sequence_cross_entropy_loss(logits, target)
    gradient = torch.autograd.grad(with_z - plain, logits)[0]
    # d/dz of z_loss s^2 = 2 z_loss s softmax(z), averaged over the two tokens that count
    torch.testing.assert_close(gradient[0, 0], torch.full((4,), math.log(4) / 4 / 2))
    assert (gradient[0, 2] == 0).all()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}])
def test_nothing_but_padding_is_0_with_zero_gradients(options):
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = sequence_cross_entropy_loss(logits, torch.full((2, 3), 7), ignore_index=7, **options)
    assert loss == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_logits_far_apart(dtype):
    logits = torch.tensor([[100.0, -100.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = sequence_cross_entropy_loss(logits, torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert loss == 200
    assert torch.autograd.grad(loss, logits)[0].tolist() == [[1, -1, 0]]


def test_untrained_language_model_starts_at_ln_v():
    loss = sequence_cross_entropy_loss(torch.zeros(1, 2, 50257), torch.tensor([[11, 50256]]))
    assert loss.item() == pytest.approx(10.8249, abs=1e-4)
