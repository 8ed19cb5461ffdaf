"""AdversarialLoss and the penalties on a critic's gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from firstlight.losses import AdversarialLoss, gradient_penalty, r1_penalty

# (discriminator, generator) at logits 2 for real and -1 for fake
EXPECTED = {
    "non_saturating": (0.440190, 1.313262),
    "hinge": (0.0, 1.0),
    "least_squares": (1.0, 2.0),
    "wasserstein": (-3.0, 1.0),
}
HALF_SUM = lambda x: 0.5 * x.flatten(1).sum(1)  # noqa: E731


@pytest.mark.parametrize("kind", EXPECTED)
def test_reference_values(kind):
    loss = AdversarialLoss(kind=kind)
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    ours = loss.discriminator(real, fake).item(), loss.generator(fake).item()
    assert ours == pytest.approx(EXPECTED[kind], abs=1e-6)


@pytest.mark.parametrize("kind", EXPECTED)
def test_real_and_fake_count_alike_whatever_their_number(kind):
    loss = AdversarialLoss(kind=kind)
    real, fake = torch.randn(3, 1, 2, 2), torch.randn(5, 4)
    each = loss.discriminator(real, fake)
    torch.testing.assert_close(loss.discriminator(torch.cat([real, real]), fake), each)
    torch.testing.assert_close(loss.discriminator(real, torch.cat([fake, fake])), each)


@pytest.mark.parametrize("kind", EXPECTED)
def test_both_players_win_where_the_other_loses(kind):
    """The discriminator wants real up and fake down, the generator wants fake up."""
    loss = AdversarialLoss(kind=kind)
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    up, down = torch.autograd.grad(loss.discriminator(real, fake), (real, fake), materialize_grads=True)
    assert (up < 0).all()
    assert (down > 0).all() if kind != "least_squares" else (down == 0).all()
    assert (torch.autograd.grad(loss.generator(fake), fake)[0] < 0).all()


def test_non_saturating_is_binary_cross_entropy():
    real, fake = torch.randn(7), torch.randn(7)
    bce = nn.BCEWithLogitsLoss()
    loss = AdversarialLoss()
    expected = bce(real, torch.ones(7)) + bce(fake, torch.zeros(7))
    torch.testing.assert_close(loss.discriminator(real, fake), expected)
    torch.testing.assert_close(loss.generator(fake), bce(fake, torch.ones(7)))
    assert loss.discriminator(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))


def test_softplus_keeps_its_tail():
    loss = AdversarialLoss()
    assert loss.generator(torch.tensor([-100.0])) == 100
    assert loss.generator(torch.tensor([100.0])).item() == pytest.approx(3.8e-44, rel=0.1)


def test_gradient_penalty_is_over_all_dimensions_of_a_sample():
    """(sqrt(12) / 2 - 1)^2; over one dimension only it would be 0.017949."""
    real, fake = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    assert gradient_penalty(HALF_SUM, real, fake).item() == pytest.approx(0.535898, abs=1e-6)
    assert gradient_penalty(HALF_SUM, real, fake, weight=10.0).item() == pytest.approx(5.35898, abs=1e-5)
    assert r1_penalty(HALF_SUM, real).item() == pytest.approx(15.0)
    assert r1_penalty(HALF_SUM, real, gamma=160.0).item() == pytest.approx(240.0)  # every 16 steps


def test_penalty_is_taken_between_real_and_fake():
    seen = []

    def critic(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return x.sum(1)

    real, fake = torch.zeros(2000, 2), torch.tensor([1.0, 3.0]).expand(2000, 2)
    gradient_penalty(critic, real, fake)
    place = seen[0][:, 0]
    torch.testing.assert_close(seen[0][:, 1], 3 * place)  # on the line
    assert place.min() >= 0
    assert place.max() <= 1
    assert place.mean() == pytest.approx(0.5, abs=0.03)
    assert place.std() == pytest.approx(12**-0.5, abs=0.02)


def test_same_generator_same_places():
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    real, fake = torch.randn(5, 3), torch.randn(5, 3)
    twice = [gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert twice[0] == twice[1]
    assert gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(4)) != twice[0]


def test_a_flat_critic_has_finite_gradients():
    """sqrt(sum of squares) has none at 0."""
    critic = nn.Linear(3, 1)
    nn.init.zeros_(critic.weight)
    loss = gradient_penalty(critic, torch.randn(4, 3), torch.randn(4, 3))
    loss.backward()
    assert loss == 1
    assert torch.isfinite(critic.weight.grad).all()


@pytest.mark.parametrize("penalty", [r1_penalty, lambda critic, real: gradient_penalty(critic, real, real + 1)])
def test_parameters_get_the_gradient_of_the_penalty(penalty):
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    real, weight = torch.randn(5, 3).double(), critic[0].weight
    state = torch.get_rng_state()
    (gradient,) = torch.autograd.grad(penalty(critic, real), weight)
    step = 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[2, 1] += sign * step
        torch.set_rng_state(state)
        values.append(penalty(critic, real).item())
        with torch.no_grad():
            weight[2, 1] -= sign * step
    torch.set_rng_state(state)
    (gradient,) = torch.autograd.grad(penalty(critic, real), weight)
    assert gradient[2, 1].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("penalty", [r1_penalty, lambda critic, real: gradient_penalty(critic, real, real + 1)])
def test_penalties_run_in_float32_and_under_no_grad(penalty):
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    real = torch.randn(5, 3)
    state = torch.get_rng_state()
    expected = penalty(critic, real)
    torch.set_rng_state(state)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours = penalty(critic, real)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected.detach())
    assert not real.requires_grad, "the caller's tensor is left alone"


def test_batch_norm_is_refused_while_it_mixes_samples():
    critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="without batch normalization"):
        r1_penalty(critic, torch.randn(4, 3))
    assert r1_penalty(critic.eval(), torch.randn(4, 3)) >= 0
