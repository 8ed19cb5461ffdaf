"""TripletLoss: known values, and mining against the definition written out as loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from firstlight.losses import TripletLoss, triplet_loss


def test_the_distance_is_symmetric_and_exact():
    zero, near, far = torch.zeros(1, 2), torch.tensor([[0.1, 0.1]]), torch.tensor([[3.0, 4.0]])
    # torch adds 1e-6 to each difference: 0.141419 one way and 0.141422 the other
    assert triplet_loss(zero, near, far, margin=5.0).item() == pytest.approx(0.1414213562, rel=1e-6)
    assert triplet_loss(near, zero, near + far, margin=5.0).item() == pytest.approx(0.1414213562, rel=1e-5)


def test_equals_torch_without_its_eps():
    a, p, n = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for reduction in ("mean", "sum", "none"):
        ours = TripletLoss(margin=0.7, reduction=reduction)(a, p, n)
        theirs = nn.TripletMarginLoss(margin=0.7, eps=0.0, reduction=reduction)(a, p, n)
        torch.testing.assert_close(ours, theirs)
        grads = [torch.autograd.grad(loss.sum(), (a, p, n)) for loss in (ours, theirs)]
        torch.testing.assert_close(*grads)


def test_coincident_points_have_a_finite_gradient():
    a = torch.ones(3, 4, requires_grad=True)
    loss = triplet_loss(a, a.detach().clone(), torch.ones(3, 4))
    assert loss == 1
    assert torch.isfinite(torch.autograd.grad(loss, a)[0]).all()


def by_loops(x: Tensor, labels: list[int], mining: str, margin: float) -> Tensor:
    """Return the mean by the definitions: Hermans et al. 2017, eq. 5; Schroff et al. 2015, section 3.2."""
    num = len(labels)
    d = [[torch.linalg.vector_norm(x[i] - x[j]) for j in range(num)] for i in range(num)]
    found = []
    for a in range(num):
        positives = [d[a][i] for i in range(num) if i != a and labels[i] == labels[a]]
        negatives = [d[a][i] for i in range(num) if labels[i] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "batch_hard":
            found.append(max(positives) - min(negatives) + margin)
        else:
            for positive in positives:
                beyond = [negative for negative in negatives if negative > positive]
                found.append(positive - (min(beyond) if beyond else max(negatives)) + margin)
    return torch.stack([gap.clamp(min=0) for gap in found]).mean()


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1], [5, -3, 5, 0, 5, 7], [0, 1] * 6])
def test_mining_equals_its_definition(mining, labels):
    x = torch.randn(len(labels), 3, dtype=torch.float64, requires_grad=True)
    for margin in (0.0, 0.3, 2.0):
        ours = triplet_loss(x, torch.tensor(labels), mining=mining, margin=margin)
        theirs = by_loops(x, labels, mining, margin)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x))


def test_semi_hard_is_strictly_farther():
    """Anchor 0 has its positive at 1, one negative as far on the other side, and one at 5."""
    x = torch.tensor([[0.0], [1.0], [-1.0], [5.0]], dtype=torch.float64)
    labels = [0, 0, 1, 1]
    ours = triplet_loss(x, torch.tensor(labels), mining="semi_hard", margin=4.5, reduction="none")
    assert ours[0].tolist() == [0, 0.5, 0, 0]
    torch.testing.assert_close(
        triplet_loss(x, torch.tensor(labels), mining="semi_hard", margin=4.5), by_loops(x, labels, "semi_hard", 4.5)
    )


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [4]])
def test_a_batch_without_triplets_is_0_with_zero_gradients(mining, labels):
    x = torch.randn(len(labels), 3, requires_grad=True)
    loss = triplet_loss(x, torch.tensor(labels), mining=mining)
    assert loss == 0
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
def test_a_collapsed_batch_costs_the_margin_with_finite_gradients(mining):
    x = torch.full((6, 3), 1e3, requires_grad=True)
    loss = triplet_loss(x, torch.tensor([0, 0, 1, 1, 2, 2]), mining=mining, margin=0.2)
    assert loss.item() == pytest.approx(0.2)
    assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()


def test_mining_of_a_thousand_is_not_cubic():
    """The cube of 1024 is 4 GiB of float32; this finishes in memory that a test has."""
    x, labels = torch.randn(1024, 8, requires_grad=True), torch.arange(1024) // 8
    triplet_loss(x, labels, mining="semi_hard").backward()
    assert torch.isfinite(x.grad).all()


def test_three_tensors_and_mining_do_not_mix():
    x = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"takes \(embeddings, labels\), not three tensors"):
        triplet_loss(x, x, x, mining="batch_hard")
