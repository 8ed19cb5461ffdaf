"""L1Penalty, L2Penalty and ElasticNetPenalty: weights only, once each, in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.regularizers import ElasticNetPenalty, L1Penalty, L2Penalty
from firstlight.regularizers._weight_penalty import _absolute_sums, _foreach_norms, _norms


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


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.2), (0.0, 0.2), (0.3, 0.0), (0.0, 0.0)])
def test_elastic_net_is_the_sum_of_both(l1, l2):
    module, other = net(), net()
    other.load_state_dict(module.state_dict())
    value, expected = ElasticNetPenalty(l1, l2)(module), L1Penalty(l1)(other) + L2Penalty(l2)(other)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    for mine, its in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_one_launch_for_all_tensors_gives_the_same_sums(dtype):
    """The path of accelerators, here on the CPU."""
    weights = tuple(torch.randn(shape).to(dtype) for shape in [(3, 4), (300, 200), (1, 1)])
    for one_by_one, order in ((_absolute_sums(weights), 1), (_norms(weights), 2)):
        together = _foreach_norms(weights, order)
        assert {value.dtype for value in together} == {torch.promote_types(dtype, torch.float32)}
        torch.testing.assert_close(torch.stack(together), torch.stack(one_by_one), rtol=1e-5, atol=0)


def test_gradients_keep_the_dtype_of_the_weights_and_do_not_underflow():
    module = nn.Linear(3, 2).to(torch.float16)
    (1024 * ElasticNetPenalty(1e-5, 1e-5)(module)).backward()
    assert module.weight.grad.dtype == torch.float16
    expected = 1024e-5 * (module.weight.detach().float().sign() + 2 * module.weight.detach().float())
    torch.testing.assert_close(module.weight.grad.float(), expected, rtol=2e-3, atol=0)


def test_float32_and_float64_weights_together():
    module = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2).double()])
    value = L2Penalty(1.0)(module)
    assert value.item() == pytest.approx(sum(float(layer.weight.detach().double().square().sum()) for layer in module))
    value.backward()
    assert [layer.weight.grad.dtype for layer in module] == [torch.float32, torch.float64]


def test_biases_with_dimensions_are_biases():
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    expected = sum(float(w.detach().square().sum()) for w in (attention.in_proj_weight, attention.out_proj.weight))
    assert L2Penalty(1.0)(attention).item() == pytest.approx(expected, rel=1e-6)


def test_functional_gradients():
    """torch.func sees through it, for those who differentiate a penalty as a function."""
    module = _Penalizing(nn.Linear(3, 2))

    def penalty(weight):
        return torch.func.functional_call(module, {"layer.weight": weight}, ())

    weight = torch.randn(2, 3)
    torch.testing.assert_close(torch.func.grad(penalty)(weight), 0.2 * weight + 0.3 * weight.sign())


class _Penalizing(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self):
        return ElasticNetPenalty(0.3, 0.1)(self.layer)
