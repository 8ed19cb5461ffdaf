"""L1Penalty and L2Penalty: weights only, once each, in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.regularizers import L1Penalty, L2Penalty


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3), nn.LayerNorm((3, 1)))


@pytest.mark.parametrize(("penalty", "power"), [(L1Penalty, 1), (L2Penalty, 2)])
def test_value_and_gradient_against_a_loop(penalty, power):
    module = net()
    value = penalty(0.3)(module)
    value.backward()
    counted = [module[0].weight, module[3].weight]
    assert value.item() == pytest.approx(0.3 * sum((w.detach().abs() ** power).sum().item() for w in counted), rel=1e-6)
    for weight in counted:
        expected = 0.3 * (weight.detach().sign() if power == 1 else 2 * weight.detach())
        torch.testing.assert_close(weight.grad, expected)
    others = [p for p in module.parameters() if all(p is not weight for weight in counted)]
    assert all(p.grad is None for p in others), "biases and norm layers are not penalized"


def test_zero_weights_have_zero_gradient():
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    (L1Penalty(1.0)(module) + L2Penalty(1.0)(module)).backward()
    assert torch.equal(module.weight.grad, torch.zeros(2, 3))


def test_tied_weights_count_once_and_frozen_ones_not():
    embedding = nn.Embedding(5, 3)
    head = nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    tied = nn.ModuleList([embedding, head])
    once = float((embedding.weight.detach() ** 2).sum())
    assert L2Penalty(1.0)(tied).item() == pytest.approx(once, rel=1e-6)
    assert L2Penalty(1.0)(tied.requires_grad_(False)).item() == 0.0


def test_half_precision_sums_in_float32():
    module = nn.Linear(1000, 1000, bias=False).to(torch.float16)
    nn.init.constant_(module.weight, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = L2Penalty(1.0)(module)
    assert value.dtype == torch.float32
    assert value.item() == 1e6  # fp16 ends at 65504


def test_l2_is_weight_decay_under_plain_sgd():
    a, b = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    b.load_state_dict(a.state_dict())
    decayed = torch.optim.SGD(a.parameters(), lr=0.1, weight_decay=0.04)
    plain = torch.optim.SGD(b.parameters(), lr=0.1)
    for _ in range(5):
        a.weight.grad = torch.zeros_like(a.weight)
        decayed.step()
        plain.zero_grad()
        L2Penalty(0.02)(b).backward()
        plain.step()
    torch.testing.assert_close(a.weight, b.weight)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match="weight must be zero or more"):
        L2Penalty(weight)
