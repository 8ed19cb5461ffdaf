"""param_groups: each trainable tensor in exactly one group, decay where it belongs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.optimizers import param_groups


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.recurrent = nn.LSTM(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 7)


def names(module: nn.Module, group: dict) -> set[str]:
    by_id = {id(parameter): name for name, parameter in module.named_parameters()}
    return {by_id[id(parameter)] for parameter in group["params"]}


def test_every_trainable_tensor_stands_in_exactly_one_group():
    zoo = Zoo()
    groups = param_groups(zoo, weight_decay=0.1)
    placed = [id(p) for group in groups for p in group["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(p) for p in zoo.parameters() if p.requires_grad}


def test_decay_by_kind_of_layer_and_pattern():
    zoo = Zoo()
    decay, free = param_groups(zoo, weight_decay=0.1, no_decay=["pos_embed"])
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.1)
    assert (free["name"], free["weight_decay"]) == ("no_decay", 0.0)
    weights = {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}
    assert names(zoo, decay) == weights | {"recurrent.weight_ih_l0", "recurrent.weight_hh_l0"}
    assert {"embedding.weight", "pos_embed", "norm.weight", "scale", "recurrent.bias_ih_l0"} <= names(zoo, free)


def test_a_tied_tensor_goes_without_decay_if_any_use_does():
    module = nn.ModuleDict({"head": nn.Linear(8, 7, bias=False), "embedding": nn.Embedding(7, 8)})
    module["embedding"].weight = module["head"].weight
    (group,) = param_groups(module, weight_decay=0.1)
    assert group["name"] == "no_decay"


def test_none_leaves_the_decay_to_the_optimizer():
    groups = param_groups(nn.Linear(3, 2), weight_decay=None)
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_layer_decay():
    module = nn.ModuleDict(
        {
            "stem": nn.Linear(4, 4, bias=False),
            "blocks": nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))),
            "head": nn.Linear(4, 2, bias=False),
        }
    )
    groups = param_groups(module, weight_decay=0.1, lr=1.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in names(module, group)}
    assert rates == {
        "stem.weight": 0.5**4,
        "blocks.0.weight": 0.5**3,
        "blocks.1.weight": 0.5**2,
        "blocks.2.weight": 0.5,
        "head.weight": 1.0,
    }
    assert [group["name"] for group in groups] == [f"decay/{depth}" for depth in range(5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -1.0}, "weight_decay must be zero or more"),
        ({"weight_decay": 0.1, "layer_decay": 0.5}, "lr must be given with layer_decay"),
        ({"weight_decay": 0.1, "layer_decay": 1.5, "lr": 1.0}, "layer_decay must be a factor"),
        ({"weight_decay": 0.1, "no_decay": ["nothing*"]}, "a pattern that matches a name"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        param_groups(nn.Linear(3, 2), **options)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        param_groups(nn.Linear(3, 2).requires_grad_(False), weight_decay=0.1)
