"""lsuv_: unit variance everywhere, in one forward pass, with nothing else changed."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from firstlight.initializers import lsuv_

X = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))


class Counts:
    """Calls of every layer, by hooks of its own."""

    def __init__(self, net):
        self.calls = dict.fromkeys((name for name, _ in net.named_modules()), 0)
        for name, layer in net.named_modules():
            layer.register_forward_hook(lambda *_, name=name: self.calls.update({name: self.calls[name] + 1}))


def variances(net, x) -> dict[str, float]:
    """Measured from outside: of each layer's first output, as lsuv_ ran the net (norms on batch statistics)."""
    found: dict[str, float] = {}

    def look(name):
        def hook(_layer, _inputs, output):
            found.setdefault(name, float(output.detach().double().var(correction=0)))

        return hook

    handles = [
        layer.register_forward_hook(look(name))
        for name, layer in net.named_modules()
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear))
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU])
def test_thirty_layers_in_one_pass(activation):
    """Reference: variances 1.0000-1.0026 for 30 layers with 1 forward and 29 calls."""
    net = nn.Sequential(*itertools.chain(*((nn.Linear(32, 32), activation()) for _ in range(30))))
    counts = Counts(net)
    report = lsuv_(net, X)
    assert counts.calls[""] == 1
    assert all(1 <= counts.calls[row.name] <= 2 for row in report.rows)
    assert all(row.calls == counts.calls[row.name] - 1 for row in report.rows)
    measured = variances(net, X)
    assert len(measured) == 30
    first = measured.pop("0")  # within the tolerance from the start: not touched again
    assert abs(first - 1) < 0.1
    assert all(abs(value - 1) < 0.003 for value in measured.values()), measured
    for row in report.rows:
        assert row.measured_variance == pytest.approx(variances(net, X)[row.name], rel=1e-5)


def test_the_first_layer_too():
    """The reference implementation leaves it at std 3.03, off by one."""
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    lsuv_(net, 3.03 * X)
    assert all(abs(value - 1) < 0.1 for value in variances(net, 3.03 * X).values())


class Backwards(nn.Module):
    """Registered in the other order than called."""

    def __init__(self):
        super().__init__()
        self.third, self.second, self.first = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.unused = nn.Linear(32, 32)

    def forward(self, x):
        return self.third(F.gelu(self.second(F.gelu(self.first(input=x)))))


def test_order_of_execution():
    """By order of registration the stds are 1, .33, .22."""
    net = Backwards()
    unused = net.unused.weight.detach().clone()
    report = lsuv_(net, 4 * X)
    measured = variances(net, 4 * X)
    assert all(abs(value - 1) < 0.1 for value in measured.values())
    assert [row.name for row in report.initialized] == ["first", "second", "third"]
    assert "not called" in report.skipped[0].skipped
    assert torch.equal(net.unused.weight, unused)


def test_reused_layers_count_at_their_first_call():
    class Reuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.twin = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
            self.twin.weight = self.b.weight

        def forward(self, x):
            return self.twin(self.a(2 * self.b(self.a(x))))

    net = Reuses()
    report = lsuv_(net, 3 * X)
    measured = variances(net, 3 * X)
    assert abs(measured["a"] - 1) < 0.1
    assert abs(measured["b"] - 1) < 0.1
    assert {row.name: row.skipped for row in report.rows}["twin"].startswith("tied")


def test_residual_branches_have_unit_variance_each():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc, self.out = nn.BatchNorm1d(32), nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x):
            return x + self.out(F.relu(self.fc(self.norm(x))))

    net = nn.Sequential(*[Branch() for _ in range(20)])
    lsuv_(net, X)
    measured = variances(net, X)
    assert len(measured) == 40
    assert all(abs(value - 1) < 0.1 for value in measured.values())


def test_modes_statistics_and_generators_are_as_before():
    net = nn.Sequential(
        nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32)
    )
    net[5].eval()
    net(X)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    modes = [layer.training for layer in net.modules()]
    state = torch.random.get_rng_state()
    lsuv_(net, X)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [layer.training for layer in net.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    net[2].p = 0.0
    assert all(abs(value - 1) < 0.1 for value in variances(net, X).values()), "as without dropout"


def test_weights_start_orthonormal():
    net = nn.Sequential(nn.Linear(32, 16))
    lsuv_(net, X)
    gram = net[0].weight @ net[0].weight.T
    assert torch.allclose(gram, gram[0, 0] * torch.eye(16), atol=1e-5)
    assert not net[0].bias.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_precisions(dtype):
    net = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32)).to(dtype)
    lsuv_(net, (5 * X).to(dtype))
    assert all(abs(value - 1) < 0.1 for value in variances(net, (5 * X).to(dtype)).values())
    assert net[0].weight.dtype == dtype


def test_convolutions_of_every_kind():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(16, 8, 4, stride=2),
        nn.Flatten(),
        nn.LazyLinear(10),
    )
    images = torch.randn(16, 3, 8, 8)
    report = lsuv_(net, images)
    assert len(report.initialized) == 4
    assert all(abs(value - 1) < 0.1 for value in variances(net, images).values())


def test_lazy_norm_layers_start_with_fresh_statistics():
    net = nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(4))
    assert len(lsuv_(net, 3 * X + 1).initialized) == 2
    assert not net[1].running_mean.any()
    assert net[1].num_batches_tracked == 0


def test_layers_to_leave_alone_and_frozen_norms():
    net = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.Linear(32, 32))
    net[1].eval()  # in a module in training mode: frozen on purpose, so its output is not normalized
    net[1].running_var.fill_(100.0)
    kept = net[2].weight.detach().clone()
    rows = {row.name: row for row in lsuv_(net, X, skip=["2"]).rows}
    assert rows["2"].skipped == "the call skips it"
    assert torch.equal(net[2].weight, kept)
    assert rows["2"].measured_variance < 0.05, "batch statistics would make it a third"
    assert abs(variances(net, X)["3"] - 1) < 0.1


def test_batches_of_several_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Bilinear(32, 32, 16)

        def forward(self, left, right):
            return self.mix(left, right)

    for batch in ((3 * X, X), {"left": 3 * X, "right": X}):
        (row,) = lsuv_(Two(), batch).rows
        assert row.skipped is None
        assert abs(row.measured_variance - 1) < 0.1


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules(whole):
    net = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    if whole:
        target = torch.compile(net, backend="eager")
    else:
        target = net
        net.compile(backend="eager")
    net.eval()
    with torch.no_grad():
        target(X)  # compiled before there are hooks, in the mode of lsuv_
    assert len(lsuv_(target, 4 * X).initialized) == 2
    net._compiled_call_impl = None
    assert all(abs(value - 1) < 0.1 for value in variances(net, 4 * X).values())


def test_transformer_layers():
    """In eval mode torch would run them in one fused call, which no layer sees."""
    net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    x = torch.randn(8, 6, 32)
    report = lsuv_(net, x)
    assert [row.name for row in report.initialized] == ["linear1", "linear2"]
    assert [row.name for row in report.skipped] == ["self_attn.out_proj"]
    net.dropout.p = net.dropout1.p = net.dropout2.p = net.self_attn.dropout = 0.0
    measured = variances(net, x)
    assert all(abs(measured[name] - 1) < 0.1 for name in ("linear1", "linear2"))


def test_token_inputs():
    net = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 32))
    (row,) = lsuv_(net, torch.randint(50, (16, 7))).rows
    assert abs(row.measured_variance - 1) < 0.1


def test_a_layer_with_a_constant_input_is_left_with_a_reason():
    """The reference implementation divides by zero: weights inf or NaN."""

    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.b(0 * self.a(x))

    net = Dead()
    report = lsuv_(net, X)
    assert "its output has the variance 0: is its input constant here?" in report.skipped[0].skipped
    assert all(p.isfinite().all() for p in net.parameters())


def test_an_error_leaves_the_weights_as_before():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(5, 5)

        def forward(self, x):
            return self.b(self.a(x))

    net = Breaks()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="shapes"):
        lsuv_(net, X)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(layer._forward_hooks for layer in net.modules())


def test_frozen_and_parametrized_layers():
    net = nn.Sequential(
        nn.Linear(32, 32).requires_grad_(False),
        nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)),
        nn.utils.parametrizations.orthogonal(nn.Linear(32, 32)),
        nn.Linear(32, 32),
    )
    frozen = net[0].weight.clone()
    rows = {row.name: row for row in lsuv_(net, 9 * X).rows}
    assert rows["0"].skipped == "frozen"
    assert torch.equal(net[0].weight, frozen)
    measured = variances(net, 9 * X)
    assert abs(measured["1"] - 1) < 0.1
    assert abs(measured["3"] - 1) < 0.1
    assert torch.allclose(net[2].weight @ net[2].weight.T, torch.eye(32), atol=1e-4)


def test_a_parametrization_that_keeps_the_weight_in_a_buffer():
    """Buffers are put back after the pass, but for those that belong to a weight."""

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("base", torch.zeros(32, 32))

        def forward(self, x):
            return x + self.base

        def right_inverse(self, weight):
            self.base.copy_(weight.detach())
            return torch.zeros_like(weight)

    net = nn.Sequential(nn.Linear(32, 32))
    nn.utils.parametrize.register_parametrization(net[0], "weight", Offset())
    lsuv_(net, 9 * X)
    assert abs(variances(net, 9 * X)["0"] - 1) < 0.1


def test_gives_up_after_max_attempts():
    class Stubborn(nn.Linear):
        def forward(self, x):
            return F.normalize(super().forward(x), dim=-1)  # whatever the weight, the variance is 1 / 32

    net = nn.Sequential(Stubborn(32, 32))
    counts = Counts(net)
    (row,) = lsuv_(net, X, max_attempts=4).rows
    assert "after 4 calls" in row.skipped
    assert counts.calls == {"": 1, "0": 5}
