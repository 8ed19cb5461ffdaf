"""What a layer feeds, by order of registration and by trace; and the warning where no static gain can work."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from firstlight.initializers import gain, initialize_
from firstlight.initializers._gain import packed_gain


def feeds(net, example_input=None) -> dict[str, str]:
    rows = initialize_(net, example_input=example_input).rows
    return {row.name: row.feeds for row in rows if row.feeds}


class Calls(nn.Module):
    """Layers a, b, c of equal width and any way to call them."""

    def __init__(self, forward, names="abc", width=8, out=None):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(width, out or width))
        self.calls = forward

    def forward(self, x):
        return self.calls(self, x)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda m, x: m.b(F.relu(m.a(x))), "relu"),
        (lambda m, x: m.b(m.a(x).relu_()), "relu"),
        (lambda m, x: m.b(torch.clamp(m.a(x), -9, 9).tanh()), "tanh"),
        (lambda m, x: m.b(F.gelu(m.a(x), approximate="tanh")), "gelu_tanh"),
        (lambda m, x: m.b(F.gelu(m.a(x))), "gelu"),
        (lambda m, x: m.b(F.relu(m.a(x)).square()), "relu_squared"),
        (lambda m, x: m.b(F.relu(m.a(x)) ** 2), "relu_squared"),
        (lambda m, x: m.b(torch.pow(F.dropout(F.relu(m.a(x)), 0.0), 2)), "relu_squared"),
        (lambda m, x: m.b(F.mish(F.layer_norm(m.a(x), (8,)))), "mish"),
        (lambda m, x: m.b((lambda h: h * torch.sigmoid(h))(m.a(x))), "silu"),
        (lambda m, x: m.b(m.a(x) + x), "linear"),
        (lambda m, x: m.b(F.hardtanh(torch.cat([m.a(x)[:2], x[:2]]).view(-1, 8))), "hardtanh"),
        (lambda m, x: m.b(F.selu(input=m.a(x))), "selu"),
    ],
)
def test_trace_sees_functions(function, wanted):
    found = feeds(Calls(function, "ab"), X)
    assert found == {"a": wanted, "b": "linear"}


def test_arguments_of_functions_count():
    net = Calls(lambda m, x: m.c(F.prelu(m.b(F.leaky_relu(m.a(x), 0.2)), torch.full((8,), 0.5))))
    rows = {row.name: row.target_std for row in initialize_(net, example_input=X).rows}
    assert rows["a"] == pytest.approx(math.sqrt(2 / 1.04 / 8))
    assert rows["b"] == pytest.approx(math.sqrt(2 / 1.25 / 8))
    net = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8))
    assert initialize_(net).rows[0].target_std == pytest.approx(math.sqrt(2 / 1.04 / 8))


@pytest.mark.parametrize(("function", "name"), [(F.silu, "swiglu"), (F.gelu, "geglu"), (F.relu, "reglu")])
def test_gated_units(function, name):
    """The gate keeps unit variance, the value makes up for it: the product has the second moment of the input."""
    net = Calls(lambda m, x: function(m.a(x)) * m.b(x), "ab", 512)
    x = torch.randn(512, 512)
    assert feeds(net, x) == {"a": "gate", "b": name}
    rows = {row.name: row.target_std for row in initialize_(net, example_input=x).rows}
    assert rows == pytest.approx({"a": 512**-0.5, "b": gain(name) * 512**-0.5})
    assert net(x).square().mean().item() == pytest.approx(1.0, abs=0.06)


def test_gated_units_in_one_layer():
    x = torch.randn(512, 512)
    for net in (
        nn.Sequential(nn.Linear(512, 1024), nn.GLU()),
        Calls(lambda m, x: torch.sigmoid(m.a(x).chunk(2, -1)[0]) * m.a(x).chunk(2, -1)[1], "a", 512, 1024),
        Calls(lambda m, x: F.glu(m.a(x)), "a", 512, 1024),
    ):
        for example in (x, None):
            if example is None and not isinstance(net, nn.Sequential):
                continue
            (row,) = initialize_(net, example_input=example).rows
            assert (row.feeds, row.target_std) == ("glu", pytest.approx(packed_gain("glu") * 512**-0.5))
            assert net(x).square().mean().item() == pytest.approx(1.0, abs=0.06)


def test_squeeze_and_excite_is_no_gated_unit_of_the_trunk():
    net = Calls(lambda m, x: (lambda h: m.c(h * torch.sigmoid(m.b(h))))(F.relu(m.a(x))))
    assert feeds(net, X) == {"a": "relu", "b": "sigmoid", "c": "linear"}
    net = Calls(lambda m, x: (lambda h: h * torch.sigmoid(m.b(x) + h))(m.a(x)), "ab")
    assert feeds(net, X) == {"a": "sigmoid", "b": "sigmoid"}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_layers(traced, activation):
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True)
    net = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 3))
    found = feeds(net, torch.randn(2, 5, 8) if traced else None)
    assert found == {
        "0": "linear",
        "1.self_attn.out_proj": "linear",
        "1.linear1": activation,
        "1.linear2": "linear",
        "2": "linear",
    }


@pytest.mark.parametrize("traced", [False, True])
def test_attention_feeds_linear_whatever_stands_around(traced):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.first = nn.Linear(8, 8)
            self.act = nn.GELU()
            self.last = nn.Linear(8, 8)

        def forward(self, x):
            return self.last(self.act(self.first(self.attention(x, x, x)[0])))

    found = feeds(Attends(), torch.randn(3, 2, 8) if traced else None)
    assert found == {"attention.out_proj": "linear", "first": "gelu", "last": "linear"}
    assert feeds(nn.MultiheadAttention(8, 2), (torch.randn(3, 2, 8),) * 3 if traced else None) == {"out_proj": "linear"}


def test_custom_transformer_layer_activation():
    layer = nn.TransformerDecoderLayer(8, 2, 16, activation=F.silu)
    assert feeds(layer)["linear1"] == "silu"
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.LeakyReLU(0.2))
    assert feeds(layer)["linear1"] == "leaky_relu"
    rows = {row.name: row.target_std for row in initialize_(layer).rows}
    assert rows["linear1"] == pytest.approx(math.sqrt(2 / 1.04 / 8))


def test_layers_that_the_input_does_not_reach_are_guessed():
    net = Calls(lambda m, x: m.b(torch.tanh(m.a(x))))
    assert feeds(net, X) == {"a": "tanh", "b": "linear", "c": "linear"}


def test_the_trace_leaves_nothing_behind():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(8, 2))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.net(x + torch.randn_like(x))

    net = Noisy()
    net.net[1].eval()
    state = torch.random.get_rng_state()
    found = feeds(net, X)
    assert found == {"net.0": "relu", "net.3": "linear"}
    assert net.net[0].weight.shape == (8, 8), "lazy layers are made, and filled"
    assert net.calls == 0
    assert not net.net[1].running_mean.any()
    assert net.training
    assert not net.net[1].training
    assert not any(layer._forward_hooks for layer in net.modules())
    torch.random.set_rng_state(state)
    initialize_(net, example_input=X, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)


def plain(activation, count, *between):
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), *between, activation()) for _ in range(count)])


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("net", "warned"),
    [
        (plain(nn.GELU, 11), "11 layers with gelu"),
        (plain(nn.SiLU, 50), "50 layers with silu"),
        (plain(nn.GELU, 10), None),
        (plain(nn.ReLU, 50), None),
        (plain(nn.Tanh, 50), None),
        (plain(nn.GELU, 50, nn.LayerNorm(8)), None),
    ],
)
def test_deep_plain_smooth_nets_are_warned_of(net, warned, traced):
    report = initialize_(net, example_input=X if traced else None)
    assert len(report.warnings) == (warned is not None)
    if warned:
        assert warned in report.warnings[0]
        assert "lsuv_" in report.warnings[0]
        assert f"warning: {report.warnings[0]}" in str(report)


def test_residuals_end_a_plain_row():
    class Residual(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(30)])
            self.scale = scale

        def forward(self, x):
            for block in self.blocks:
                x = F.gelu(block(x)) + self.scale * x if self.scale else F.gelu(block(x))
            return x

    assert not initialize_(Residual(1.0), example_input=X).warnings
    assert initialize_(Residual(0.0), example_input=X).warnings


def test_names_that_match_nothing():
    from firstlight.initializers import InitPlan, InitRule

    report = initialize_(nn.Linear(2, 2), InitPlan([InitRule("zeros", names="blocks.*"), InitRule("lecun")]))
    assert report.warnings == ("no layer matches the names 'blocks.*' of a rule",)
