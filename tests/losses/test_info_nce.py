"""InfoNCELoss: known values, further negatives, both directions, a temperature that can be learned."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.losses import InfoNCELoss, info_nce_loss


def plain(query: Tensor, key: Tensor, negatives: Tensor | None, temperature: float) -> Tensor:
    candidates = key if negatives is None else torch.cat([key, negatives])
    logits = F.normalize(query, dim=1) @ F.normalize(candidates, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(query)))


def test_orthonormal_keys_have_all_digits():
    loss = info_nce_loss(torch.eye(3), torch.eye(3), temperature=0.1)
    assert loss.item() == pytest.approx(9.0795737467e-5, rel=1e-6)


def test_equal_embeddings():
    same = torch.ones(4, 2)
    assert info_nce_loss(same, same).item() == pytest.approx(math.log(4), rel=1e-6)
    assert info_nce_loss(same, same, torch.ones(12, 2)).item() == pytest.approx(math.log(16), rel=1e-6)


@pytest.mark.parametrize("num_negatives", [None, 1, 9])
def test_equals_cross_entropy_with_the_key_on_the_diagonal(num_negatives):
    query, key = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    negatives = None if num_negatives is None else torch.randn(num_negatives, 4, dtype=torch.float64)
    ours, theirs = info_nce_loss(query, key, negatives), plain(query, key, negatives, 0.07)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, (query, key)), torch.autograd.grad(theirs, (query, key)))


def test_symmetric_is_the_mean_of_both_directions():
    query, key = torch.randn(5, 4), torch.randn(5, 4)
    both = info_nce_loss(query, key, symmetric=True)
    torch.testing.assert_close(both, (info_nce_loss(query, key) + info_nce_loss(key, query)) / 2)
    torch.testing.assert_close(both, info_nce_loss(key, query, symmetric=True))
    assert both != info_nce_loss(query, key)


def test_the_temperature_gets_the_gradient_of_the_formula():
    loss = InfoNCELoss(learnable_temperature=True, temperature=0.2).double()
    query, key = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    ours = torch.autograd.grad(loss(query, key), loss.log_scale)[0]
    log_scale = loss.log_scale.detach().clone().requires_grad_()
    logits = log_scale.exp() * F.normalize(query, dim=1) @ F.normalize(key, dim=1).T
    torch.testing.assert_close(ours, torch.autograd.grad(F.cross_entropy(logits, torch.arange(5)), log_scale)[0])


def test_the_learned_scale_stops_at_100_and_comes_back():
    loss = InfoNCELoss(learnable_temperature=True)
    eye = torch.eye(4)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e6)
    for _ in range(3):  # a perfect batch asks for an ever larger scale
        optimizer.zero_grad()
        loss(eye, eye).backward()
        optimizer.step()
    assert loss(eye, eye).item() == pytest.approx(info_nce_loss(eye, eye, temperature=0.01).item(), abs=1e-12)
    assert loss.log_scale.item() == pytest.approx(math.log(100), rel=1e-6)
    loss(eye, -eye).backward()  # and a wrong one for a smaller
    assert loss.log_scale.grad > 0


def test_a_fixed_temperature_has_no_parameter():
    assert not list(InfoNCELoss().parameters())
    assert [name for name, _ in InfoNCELoss(learnable_temperature=True).named_parameters()] == ["log_scale"]


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_minimum_is_reached_by_a_simplex(symmetric):
    loss = InfoNCELoss(temperature=0.3, symmetric=symmetric)
    simplex = torch.eye(5, dtype=torch.float64) - 1 / 5
    torch.testing.assert_close(loss(simplex, simplex), loss.minimum(simplex, simplex))
    pair = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # a query and its key, and what is opposite
    torch.testing.assert_close(
        InfoNCELoss(temperature=0.3)(pair, pair, -pair), InfoNCELoss(temperature=0.3).minimum(pair, pair, -pair)
    )
    learned = InfoNCELoss(temperature=0.3, learnable_temperature=True)
    assert learned.minimum(pair, pair, -pair) < InfoNCELoss(temperature=0.02).minimum(pair, pair, -pair)
