"""initialize_: the variance that was asked for, by what each layer is and feeds."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from firstlight.initializers import InitPlan, InitRule, gain, initialize_


class Functional(nn.Module):
    """Activations that no list of submodules shows."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)  # registered first, used last
        self.first = nn.Linear(32, 64)
        self.second = nn.Linear(64, 64)

    def forward(self, x):
        hidden = F.relu(self.first(x))
        return self.last(torch.tanh(F.dropout(self.second(hidden), 0.1, self.training)) + hidden)


def by_name(report) -> dict:
    return {row.name: row for row in report.rows}


def test_recommended_plan_layer_by_layer():
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(640, 128),
        nn.Tanh(),
        nn.Linear(128, 10),
    )
    rows = by_name(initialize_(net))
    assert rows["0"].target_std == pytest.approx(math.sqrt(2 / (64 * 9)))  # He, fan out
    assert rows["3"].target_std == pytest.approx(math.sqrt(2 / 9))  # depthwise: torch's own gives .0589
    assert rows["6"].target_std == pytest.approx(math.sqrt(2 / (640 + 128)))  # Xavier
    assert rows["8"].target_std == pytest.approx(math.sqrt(1 / 128))  # feeds nothing
    for row in rows.values():
        if row.target_std:
            assert row.measured_std == pytest.approx(row.target_std, rel=0.1)
    assert all(not layer.bias.any() for layer in net if getattr(layer, "bias", None) is not None)
    bound = math.sqrt(6 / (640 + 128))
    assert net[6].weight.abs().max() <= bound
    assert net[6].weight.abs().max() > 0.99 * bound


def test_trace_sees_functions_and_the_order_of_use():
    torch.manual_seed(0)
    net = Functional()
    before = net.training
    rows = by_name(initialize_(net, example_input=torch.randn(2, 32)))
    assert {name: row.feeds for name, row in rows.items()} == {"first": "relu", "second": "tanh", "last": "linear"}
    assert net.training == before
    assert not net.last._forward_hooks


def test_without_a_trace_order_of_registration_decides():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 4), nn.Linear(4, 2))
    feeds = {name: row.feeds for name, row in by_name(initialize_(net)).items() if row.feeds}
    assert feeds == {"0": "gelu", "3": "linear", "4": "linear"}


def test_embedding_keeps_its_padding_row():
    layer = nn.Embedding(1000, 16, padding_idx=3)
    (row,) = initialize_(layer).rows
    assert row.measured_std == pytest.approx(0.02, rel=0.05)
    assert not layer.weight[3].any()


def test_transposed_convolution_counts_its_fans_turned():
    layer = nn.ConvTranspose2d(64, 16, 4)
    (row,) = initialize_(layer, InitPlan([InitRule("he", fan="fan_in")])).rows
    assert row.target_std == pytest.approx(math.sqrt(1 / (64 * 16)))


def test_same_generator_same_weights_and_the_global_one_untouched():
    state = torch.random.get_rng_state()
    draws = []
    for _ in range(2):
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        torch.random.set_rng_state(state)
        initialize_(net, generator=torch.Generator().manual_seed(1))
        assert torch.equal(torch.random.get_rng_state(), state)
        draws.append(torch.cat([p.flatten() for p in net.parameters()]))
    assert torch.equal(*draws)


def test_what_cannot_be_filled_is_left_alone_with_a_reason():
    tied = nn.Linear(4, 4, bias=False)
    twin = nn.Linear(4, 4, bias=False)
    twin.weight = tied.weight
    net = nn.ModuleDict(
        {
            "spectral": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "lazy": nn.LazyLinear(4),
            "affineless": nn.BatchNorm1d(4, affine=False),
            "tied": tied,
            "twin": twin,
            "meta": nn.Linear(4, 4, device="meta"),
        }
    )
    before = {name: value.clone() for name, value in net.state_dict().items() if name[:4] in ("spec", "froz")}
    reasons = {row.name: row.skipped for row in initialize_(net).rows}
    assert "SpectralNorm) makes other values" in reasons["spectral"]
    assert reasons["frozen"] == "frozen"
    assert "lazy" in reasons["lazy"]
    assert "no weight" in reasons["affineless"]
    assert reasons["tied"] is None
    assert "tied" in reasons["twin"]
    assert "meta" in reasons["meta"]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_rules_come_in_order():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    rows = by_name(initialize_(net, InitPlan([InitRule("zeros", names="2"), InitRule("normal", std=0.5)])))
    assert not net[2].weight.any()
    assert rows["0"].target_std == 0.5


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"scheme": "kaiming"}, "scheme must be one of he, xavier"),
        ({"scheme": "he", "kinds": ["lienar"]}, "did you mean 'linear'"),
        ({"scheme": "normal"}, "std must be given for the scheme 'normal' only"),
        ({"scheme": "he", "std": 0.1}, "std must be given"),
    ],
)
def test_bad_rules_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        InitRule(**rule)


def test_unknown_activation_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        gain("rleu")


ACTIVATIONS = {
    "relu": lambda z: max(z, 0),
    "gelu": lambda z: z * mpmath.ncdf(z),
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "mish": lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z))),
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    "hardswish": lambda z: z * min(max(z + 3, 0), 6) / 6,
    "leaky_relu": lambda z: z if z > 0 else mpmath.mpf("0.01") * z,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gains_keep_the_second_moment(name):
    """gain = 1 / sqrt(E[f(z)^2]) by numerical integration."""
    function = ACTIVATIONS[name]
    second = mpmath.quad(lambda z: function(z) ** 2 * mpmath.npdf(z), [-12, -3, 0, 3, 12])
    assert gain(name) == pytest.approx(float(1 / mpmath.sqrt(second)), rel=1e-6)


def test_deep_relu_net_keeps_its_signal():
    """Fifty layers of He: the second moment neither dies nor explodes (torch's default loses 20 orders)."""
    torch.manual_seed(0)
    layers = [layer for _ in range(50) for layer in (nn.Linear(512, 512), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(512, 512))
    signal = torch.randn(64, 512)
    untouched = net(signal).square().mean().item()
    initialize_(net)
    assert untouched < 1e-3
    assert 0.2 < net(signal).square().mean().item() < 5
