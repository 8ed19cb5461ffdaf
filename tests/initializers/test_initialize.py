"""initialize_: the variance that was asked for, by what each layer is and feeds."""

from __future__ import annotations

import math

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


# --- recurrent layers


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(
    ("layer", "gates"),
    [
        (nn.LSTM(24, 32, num_layers=2, bidirectional=True), 4),
        (nn.LSTM(24, 32, proj_size=8), 4),
        (nn.GRU(24, 32), 3),
        (nn.RNN(24, 32), 1),
        (nn.LSTMCell(24, 32), 4),
        (nn.GRUCell(24, 32), 3),
        (nn.RNNCell(24, 32), 1),
    ],
    ids=str,
)
def test_recurrent_layers_gate_by_gate(layer, gates):
    report = initialize_(layer)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    assert {row.name for row in report.initialized} == {name for name in weights if "weight" in name}
    for name, weight in weights.items():
        if name.startswith("weight_hh"):
            for gate in weight.chunk(gates):
                assert torch.allclose(torch.linalg.svdvals(gate), torch.ones(min(gate.shape)), atol=1e-5)
        elif name.startswith("weight_ih"):
            for gate in weight.chunk(gates):
                assert gate.std().item() == pytest.approx(math.sqrt(2 / (32 + weight.shape[1])), rel=0.15)
        elif name.startswith("bias"):
            forget = "LSTM" in type(layer).__name__ and "_ih" in name
            wanted = torch.zeros_like(weight)
            if forget:
                wanted[32:64] = 1.0
            assert torch.equal(weight, wanted), name
    if isinstance(layer, nn.RNNBase):
        assert layer(torch.randn(3, 2, 24))[0].isfinite().all()


def test_forget_bias_and_other_schemes():
    layer = nn.LSTM(4, 8)
    initialize_(layer, InitPlan([InitRule("gates", kinds=["recurrent"], forget_bias=2.5)]))
    assert (layer.bias_ih_l0 + layer.bias_hh_l0)[8:16].tolist() == [2.5] * 8
    initialize_(layer, InitPlan([InitRule("normal", std=0.5)]))
    assert not layer.bias_ih_l0.any()
    rows = initialize_(layer, InitPlan([InitRule("orthogonal", kinds=["recurrent"])])).rows
    assert [row.target_std for row in rows] == pytest.approx([8**-0.5, 8**-0.5])
    assert initialize_(nn.LSTM(4, 8, bias=False)).initialized


def test_half_precision_lstm():
    layer = nn.LSTM(16, 16).to(torch.bfloat16)
    assert all(row.skipped is None for row in initialize_(layer).rows)
    gate = layer.weight_hh_l0[:16].float()
    assert (gate @ gate.T - torch.eye(16)).abs().max() < 0.03


# --- attention


def test_attention_projections_each_by_themselves():
    """Reference for E=64: bound 0.2165 for a matrix; torch fills the packed (192, 64) with 0.1531."""
    layer = nn.MultiheadAttention(64, 4, add_bias_kv=True)
    assert layer.in_proj_weight.abs().max() <= 0.1531
    rows = by_name(initialize_(layer))
    for block in layer.in_proj_weight.chunk(3):
        assert 0.2165 * 0.99 < block.abs().max() <= 0.21651
    assert rows["in_proj_weight"].target_std == pytest.approx(math.sqrt(2 / 128))
    assert rows["out_proj"].scheme == "lecun"
    assert rows["out_proj"].target_std == pytest.approx(1 / 8)
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()
    assert rows["bias_k"].skipped is None


def test_attention_with_other_sizes():
    rows = by_name(initialize_(nn.MultiheadAttention(64, 4, kdim=32, vdim=16)))
    wanted = {"q_proj_weight": 64, "k_proj_weight": 32, "v_proj_weight": 16}
    for name, size in wanted.items():
        assert rows[name].target_std == pytest.approx(math.sqrt(2 / (64 + size)))


# --- fans


def forward_gain(layer, *inputs) -> float:
    """The mean square of outputs for inputs of unit mean square, away from borders."""
    with torch.no_grad():
        output = layer(*inputs)
    if output.dim() == 4:
        output = output[..., 4:-4, 4:-4]
    return float(output.square().mean())


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(256, 256), [(256, 256)]),
        (nn.Bilinear(24, 16, 256), [(256, 24), (256, 16)]),
        (nn.Conv2d(32, 32, 3), [(4, 32, 24, 24)]),
        (nn.Conv2d(32, 64, 3, groups=8, stride=2), [(4, 32, 48, 48)]),
        (nn.Conv2d(256, 256, 3, groups=256), [(4, 256, 24, 24)]),
        (nn.ConvTranspose2d(32, 32, 3), [(4, 32, 24, 24)]),
        (nn.ConvTranspose2d(32, 32, 4, stride=2), [(4, 32, 24, 24)]),
        (nn.ConvTranspose2d(64, 32, 4, stride=2, groups=4), [(4, 64, 24, 24)]),
    ],
    ids=str,
)
def test_fan_in_keeps_the_signal(layer, inputs):
    """LeCun's std 1 / sqrt(fan_in), seen from outside: the mean square of the output is that of the input."""
    initialize_(layer, InitPlan([InitRule("lecun")]))
    assert forward_gain(layer, *(torch.randn(shape) for shape in inputs)) == pytest.approx(1.0, rel=0.12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(128, 256), (256, 128)),
        (nn.Conv2d(32, 64, 3, groups=8), (4, 32, 24, 24)),
        (nn.ConvTranspose2d(64, 32, 3, groups=4), (4, 64, 24, 24)),
    ],
    ids=str,
)
def test_fan_out_keeps_the_gradient(layer, shape):
    initialize_(layer, InitPlan([InitRule("he", fan="fan_out", gain=1.0)]))
    x = torch.randn(shape, requires_grad=True)
    output = layer(x)
    (grad,) = torch.autograd.grad(output, x, torch.randn_like(output))
    if grad.dim() == 4:
        grad = grad[..., 4:-4, 4:-4]
    assert float(grad.square().mean()) == pytest.approx(1.0, rel=0.12)


def test_depthwise_reference():
    """64 channels 3x3: .4714, where torch's own fan_out gives .0589."""
    layer = nn.Conv2d(64, 64, 3, groups=64)
    (row,) = initialize_(layer, InitPlan([InitRule("he", fan="fan_out", gain=math.sqrt(2))])).rows
    assert row.target_std == pytest.approx(0.4714, abs=5e-5)
    assert row.measured_std == pytest.approx(0.4714, rel=0.1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    assert layer.weight.std().item() == pytest.approx(0.0589, rel=0.1)


# --- distributions and schemes


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_distributions_have_the_same_variance(distribution):
    layer = nn.Linear(400, 400)
    initialize_(layer, InitPlan([InitRule("normal", std=0.02, distribution=distribution)]))
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.01)
    reach = layer.weight.abs().max().item() / 0.02
    if distribution == "truncated_normal":  # two standard deviations of the uncut normal
        assert 2.2 < reach <= 2 / 0.8796256 + 1e-5
    else:
        assert (reach <= math.sqrt(3) + 1e-6) == (distribution == "uniform")


def test_orthogonal_scheme_by_groups():
    layer = nn.Conv2d(32, 32, 3, groups=4)
    (row,) = initialize_(layer, InitPlan([InitRule("orthogonal", gain=2.0)])).rows
    for block in layer.weight.detach().chunk(4):
        assert torch.allclose(block.flatten(1) @ block.flatten(1).T, 4 * torch.eye(8), atol=1e-4)
    assert row.target_std == pytest.approx(2 / math.sqrt(72))
    assert row.measured_std == pytest.approx(row.target_std, rel=0.05)


def test_a_scheme_with_fans_is_refused_for_a_weight_without():
    (row,) = initialize_(nn.LayerNorm(8), InitPlan([InitRule("he")])).rows
    assert row.skipped == "the scheme 'he' needs fans, which a weight of shape (8,) lacks"


def test_xavier_keeps_to_one_before_what_saturates():
    net = nn.Sequential(nn.Linear(8, 8), nn.Hardtanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    rows = initialize_(net, InitPlan([InitRule("xavier")])).rows
    assert [row.target_std for row in rows] == pytest.approx([8**-0.5, (2 / 8) ** 0.5, 8**-0.5])
    assert [row.scheme for row in initialize_(net).rows] == ["xavier", "he", "lecun"], "hardtanh is of tanh's family"


# --- tied, padded, parametrized, and what must not be missed


@pytest.mark.parametrize("head_first", [False, True])
def test_a_tied_head_is_filled_as_the_embedding_it_is(head_first):
    """A loop by type leaves .36 in place of .02."""
    table, head = nn.Embedding(500, 16), nn.Linear(16, 500, bias=False)
    head.weight = table.weight
    net = nn.ModuleDict({"head": head, "table": table} if head_first else {"table": table, "head": head})
    rows = by_name(initialize_(net))
    assert table.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert rows["head"].skipped == "tied: filled with 'table', the layer that owns it"


def test_two_parameters_of_one_storage_are_tied_too():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = nn.Parameter(net[0].weight.data)
    assert "tied" in by_name(initialize_(net))["1"].skipped


def test_padding_row_does_not_count_in_what_is_measured():
    layer = nn.EmbeddingBag(2, 4000, padding_idx=1)
    (row,) = initialize_(layer).rows
    assert row.measured_std == pytest.approx(0.02, rel=0.05)
    assert not layer.weight[1].any()


def test_weight_norm_is_assigned_through_its_parametrization():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
    (row,) = initialize_(layer).rows
    assert row.skipped is None
    assert layer(torch.zeros(1, 64)).abs().max() == 0
    assert layer.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    layer.weight.sum().backward()
    assert layer.parametrizations.weight.original1.grad is not None


def test_orthogonal_parametrization_takes_orthogonal_matrices_only():
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
    before = layer.weight.detach().clone()
    (row,) = initialize_(layer).rows
    assert "Orthogonal) makes other values of those it is given" in row.skipped
    assert torch.equal(layer.weight, before)
    (row,) = initialize_(layer, InitPlan([InitRule("orthogonal")])).rows
    assert row.skipped is None
    assert not torch.allclose(layer.weight, before, atol=0.1)
    assert torch.allclose(layer.weight @ layer.weight.T, torch.eye(8), atol=1e-5)


def test_a_parametrization_without_an_inverse_is_refused():
    class Symmetric(nn.Module):
        def forward(self, x):
            return x.triu() + x.triu(1).mT

    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    before = layer.weight.detach().clone()
    (row,) = initialize_(layer).rows
    assert "(Symmetric) takes no values" in row.skipped
    assert torch.equal(layer.weight, before)


def test_parametrized_lstm():
    layer = nn.utils.parametrizations.weight_norm(nn.LSTM(8, 8), "weight_hh_l0")
    rows = by_name(initialize_(layer))
    assert rows["weight_hh_l0"].skipped is None
    gate = layer.weight_hh_l0[8:16]
    assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_style_weight_norm_is_refused():
    layer = nn.utils.weight_norm(nn.Linear(4, 4))
    (row,) = (row for row in initialize_(layer).rows if row.name == "")
    assert "forward hook" in row.skipped


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning")  # torch's own constructor
def test_layers_of_other_types_are_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))
            self.act = nn.PReLU()
            self.quantized = torch.ao.nn.quantized.dynamic.Linear(4, 4)

    notes = {row.name: row.skipped for row in initialize_(Model()).rows}
    assert "no rule knows layers of this type; its own: token" in notes[""]
    assert "act.weight" in notes["act"]
    assert notes["quantized"] == "quantized"


def test_integer_and_eight_bit_weights_are_refused():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    eight = nn.Linear(4, 4)
    eight.weight = nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn))
    for row in initialize_(nn.Sequential(layer, eight)).rows:
        assert "quantized" in row.skipped


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_half_precision_draws_the_same_values(distribution):
    full, half = nn.Linear(64, 64), nn.Linear(64, 64).to(torch.bfloat16)
    plan = InitPlan([InitRule("lecun", distribution=distribution)])
    for layer in (full, half):
        initialize_(layer, plan, generator=torch.Generator().manual_seed(3))
    assert torch.equal(full.weight.to(torch.bfloat16), half.weight)
