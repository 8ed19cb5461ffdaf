"""The laws of regularizers, over every row of the table."""

from __future__ import annotations

import copy

import pytest
import torch
from contracts.regularizers_cases import BAD, ROWS, network
from torch import nn

import firstlight.regularizers as room
from firstlight._spec import build, spec_of

PENALTIES = {name: row for name, row in ROWS.items() if row.penalty is not None}
STEPS = {name: row for name, row in ROWS.items() if row.step is not None}


def penalty_of(name: str, weight: float = 0.3) -> nn.Module:
    return ROWS[name].penalty(weight)


def run(penalty: nn.Module, module: nn.Module, inputs: torch.Tensor | None = None) -> torch.Tensor:
    """Return the penalty after one forward pass, which only those on activations need."""
    if hasattr(penalty, "attach"):
        penalty.attach(module)
    generator = torch.Generator().manual_seed(0)
    module(torch.randn(5, 2, 4, 4, generator=generator) if inputs is None else inputs)
    return penalty(module)


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    return [module[0].weight, module[3].weight, module[5].weight]


def test_every_public_name_has_a_row():
    assert set(ROWS) == set(room.__all__)


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_is_a_finite_scalar_above_zero_and_zero_on_its_null_set(name):
    module = network()
    value = run(penalty_of(name), module)
    assert value.shape == ()
    assert 0 < value.item() < float("inf")
    with torch.no_grad():
        for weight in weights_of(module):
            PENALTIES[name].fill(weight)
        nn.init.zeros_(module[0].bias)
    assert run(penalty_of(name), module).item() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_is_linear_in_its_weight(name):
    module = network()
    one = run(penalty_of(name, 1.0), module).item()
    assert run(penalty_of(name, 2.5), module).item() == pytest.approx(2.5 * one, rel=1e-6)
    assert run(penalty_of(name, 0.0), module).item() == 0.0


@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradient_and_the_gradient_of_the_gradient(name):
    module = network().double()
    penalty = penalty_of(name)
    values = [weight.detach().clone().requires_grad_() for weight in weights_of(module)]
    names = ["0.weight", "3.weight", "5.weight"]
    if hasattr(penalty, "attach"):
        penalty.attach(module)
    inputs = torch.randn(5, 2, 4, 4, dtype=torch.float64)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, inputs):
            self.net(inputs)
            return penalty(self.net)

    both = Both()

    def function(*weights):
        given = {f"net.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(both, given, (inputs,))

    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_sums_in_float32(name, dtype):
    """The value on half weights is that of the same numbers in float32, and autocast does not change it."""
    half = nn.Sequential(nn.Linear(300, 300, bias=False), nn.Identity(), nn.Identity()).to(dtype)
    if name == "ActivationPenalty":
        half[0] = nn.Identity()  # a matrix product in 16 bits has errors of its own
    full = copy.deepcopy(half).float()
    inputs = torch.randn(2, 300).to(dtype)
    expected = run(penalty_of(name), full, inputs.float())
    value = run(penalty_of(name), half, inputs)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(run(penalty_of(name), full, inputs.float()), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_comes_back_from_plain_values(name):
    penalty = penalty_of(name)
    spec = spec_of(penalty)
    assert spec["class_path"] == f"firstlight.regularizers.{name}"
    module = network()
    assert run(build(spec, base=nn.Module, name="penalty"), module).item() == run(penalty, module).item()


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "ActivationPenalty"])
def test_frozen_weights_are_not_penalized_and_tied_ones_once(name):
    assert penalty_of(name)(network().requires_grad_(False)).item() == 0.0
    shared = nn.Linear(3, 3)
    twice = nn.ModuleList([shared, nn.Linear(3, 3)])
    twice[1].weight = shared.weight
    assert penalty_of(name)(twice).item() == penalty_of(name)(shared).item()


@pytest.mark.parametrize("name", STEPS)
def test_a_step_works_in_place_on_weights_only(name):
    module = network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3).add_(0.01)
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    identities = {key: id(value) for key, value in module.named_parameters()}
    assert STEPS[name].step(module) is module
    for key, value in module.named_parameters():
        assert id(value) == identities[key]
        is_weight = key in ("0.weight", "3.weight", "5.weight")
        assert torch.equal(value, before[key]) != is_weight, key


@pytest.mark.parametrize("name", STEPS)
def test_a_step_changes_no_bit_where_it_has_nothing_to_do(name):
    module = network()
    with torch.no_grad():
        for weight in weights_of(module):
            STEPS[name].fill(weight)
    before = [weight.detach().clone() for weight in weights_of(module)]
    STEPS[name].step(module)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(module), strict=True))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_leaves_frozen_weights_alone_and_counts_tied_ones_once(name):
    frozen = network().requires_grad_(False)
    before = [weight.clone() for weight in weights_of(frozen)]
    STEPS[name].step(frozen)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(frozen), strict=True))
    alone = nn.Linear(3, 3)
    shared = copy.deepcopy(alone)
    twice = nn.ModuleList([shared, nn.Linear(3, 3)])
    twice[1].weight = shared.weight
    STEPS[name].step(alone)
    STEPS[name].step(twice)
    assert torch.equal(alone.weight, twice[1].weight)
