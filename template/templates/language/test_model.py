"""No token sees a later one, the sizes are as counted, every weight learns, the baseline's numbers add up."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from {{ cookiecutter.package_name }} import baseline, model

ROOT = Path(__file__).resolve().parents[1]


def test_number_of_parameters() -> None:
    # By hand: three tables; in each of two blocks two norms, 3 + 1 + 4 + 4 squares with bias; a norm.
    tables = 64 * (256 + 8192 + 128)
    blocks = 2 * (2 * 2 * 64 + 12 * 64 * 64 + (3 + 1 + 4 + 1) * 64)
    network = model.CausalTransformer()
    assert sum(parameter.numel() for parameter in network.parameters()) == tables + blocks + 2 * 64


def test_no_token_sees_a_later_one() -> None:
    network = model.CausalTransformer(context=16).eval()
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 256
    differs = (network(tokens) - network(changed)).abs().sum(-1)[0] > 1e-6
    assert differs.tolist() == [False] * 9 + [True] * 7


def test_every_parameter_gets_a_gradient() -> None:
    network = model.CausalTransformer(pairs=16, context=32, vocabulary=8)
    (network(torch.randint(8, (8, 32))) * torch.randn(64)).sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )


def test_it_works_without_pairs() -> None:
    assert model.CausalTransformer(pairs=0)(torch.randint(256, (2, 5))).shape == (2, 5, 64)


def test_ends_of_branches_begin_as_small_as_the_depth_asks() -> None:
    config = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text("utf-8"))
    depth = config["model"]["model"]["init_args"]["depth"]
    rules = config["weight_initialization"]["plan"]["init_args"]["rules"]
    ends = [rule["std"] for rule in rules if "names" in rule]
    assert ends == pytest.approx([0.02 / math.sqrt(2 * depth)] * 2)


def test_the_trigram_model_gives_probabilities() -> None:
    tokens = torch.randint(5, (400,), generator=torch.Generator().manual_seed(0))
    table = baseline.trigram(tokens, 7)  # two of the seven never occur
    assert torch.allclose(table.sum(-1), torch.ones(7, 7, dtype=torch.float64))
    assert (table > 0).all()


def test_the_trigram_model_knows_what_always_follows() -> None:
    table = baseline.trigram(torch.tensor([0, 1, 2, 3] * 200), 4)
    assert table[0, 1].argmax() == 2
    assert table[0, 1, 2] > 0.9
