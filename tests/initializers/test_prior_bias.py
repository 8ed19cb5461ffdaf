"""prior_bias_: what the output layer predicts before it has learned anything."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from firstlight.initializers import prior_bias_


def head(outputs: int) -> nn.Linear:
    layer = nn.Linear(4, outputs)
    nn.init.zeros_(layer.weight)
    return layer


def test_softmax_starts_at_the_frequencies():
    layer = prior_bias_(head(3), torch.tensor([10, 30, 60]))
    assert torch.allclose(layer(torch.randn(2, 4)).softmax(-1), torch.tensor([[0.1, 0.3, 0.6]] * 2))


def test_references():
    """Initial cross-entropy .3251 against .6931 for 90/10; BCE .0560015 for pi = .01, bias -4.59512."""
    layer, x = head(2), torch.randn(10, 4)
    target = torch.tensor([0] * 9 + [1])
    nn.init.zeros_(layer.bias)
    assert F.cross_entropy(layer(x), target).item() == pytest.approx(0.6931, abs=5e-5)
    assert F.cross_entropy(prior_bias_(layer, [90, 10])(x), target).item() == pytest.approx(0.3251, abs=5e-5)
    for binary in (prior_bias_(head(1), [99, 1]), prior_bias_(head(1), 0.01, output="sigmoid")):
        assert binary.bias.tolist() == pytest.approx([-4.59512], abs=5e-6)
        labels = torch.tensor([1.0] + [0.0] * 99)
        loss = F.binary_cross_entropy_with_logits(binary(torch.randn(100, 4)).squeeze(1), labels)
        assert loss.item() == pytest.approx(0.0560015, abs=1e-6)


def test_sigmoid_counts_of_a_total():
    layer = prior_bias_(head(3), [1, 10, 50], output="sigmoid", total=100)
    assert torch.allclose(layer.bias.sigmoid(), torch.tensor([0.01, 0.1, 0.5]))
    assert prior_bias_(nn.Conv2d(4, 9, 1), 0.01, output="sigmoid").bias.std() == 0


def test_rare_classes_in_half_precision():
    layer = prior_bias_(head(2).to(torch.bfloat16), [10**9, 1])
    assert layer.bias[1].item() == pytest.approx(-math.log(10**9), rel=4e-3)
