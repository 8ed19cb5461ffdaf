"""param_groups: each trainable tensor in exactly one group, decay where it belongs."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

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


def rates(module: nn.Module, **options) -> dict[str, float]:
    groups = param_groups(module, weight_decay=0.1, lr=1.0, layer_decay=0.5, **options)
    return {name: group["lr"] for group in groups for name in names(module, group)}


def linear() -> nn.Linear:
    return nn.Linear(4, 4, bias=False)


def test_layer_decay_counts_layers_that_have_parameters():
    """Activations are no layers, names need not be numbers, and without a head the last layer has the base rate."""
    unnamed = nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear())
    assert rates(unnamed) == {"0.weight": 0.25, "2.weight": 0.5, "4.weight": 1.0}
    named = nn.Sequential(OrderedDict(first=linear(), act=nn.ReLU(), second=linear(), third=linear()))
    assert rates(named) == {"first.weight": 0.25, "second.weight": 0.5, "third.weight": 1.0}


def test_layer_decay_takes_the_innermost_of_containers_with_the_same_parameters():
    module = nn.Sequential(OrderedDict(body=nn.ModuleList([linear(), linear(), linear()]), act=nn.ReLU()))
    assert rates(module) == {"body.0.weight": 0.25, "body.1.weight": 0.5, "body.2.weight": 1.0}


def test_layers_can_be_named():
    module = nn.ModuleDict({name: linear() for name in ("stem", "layer1", "layer10", "layer2", "head")})
    assert rates(module, layers=["layer1", "layer10", "layer2"]) == {
        "stem.weight": 0.5**4,
        "layer1.weight": 0.5**3,
        "layer10.weight": 0.5**2,
        "layer2.weight": 0.5,
        "head.weight": 1.0,
    }
    with pytest.raises(ValueError, match="layers must be the name of a layer with parameters; got 'layer3'"):
        rates(module, layers=["layer1", "layer3"])


def test_a_tied_tensor_learns_at_the_rate_of_its_first_use():
    module = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "blocks": nn.ModuleList([linear(), linear()])})
    module["head"] = linear()
    module["head"].weight = module["embedding"].weight
    assert rates(module) == {"embedding.weight": 0.125, "blocks.0.weight": 0.25, "blocks.1.weight": 0.5}


def test_parametrized_tensors_count_as_what_they_stand_for():
    module = nn.Sequential(spectral_norm(nn.Embedding(7, 8)), weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    decay, free = param_groups(module, weight_decay=0.1)
    stem = "1.parametrizations.weight.original"
    assert names(module, decay) == {f"{stem}0", f"{stem}1", "2.weight"}
    assert "0.parametrizations.weight.original" in names(module, free)


def test_lists_and_dictionaries_of_parameters():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrices = nn.ParameterList([nn.Parameter(torch.ones(2, 2)) for _ in range(2)])
            self.named = nn.ParameterDict({"gate": nn.Parameter(torch.ones(3)), "bias": nn.Parameter(torch.ones(2, 2))})

    bag = Bag()
    decay, free = param_groups(bag, weight_decay=0.1)
    assert names(bag, decay) == {"matrices.0", "matrices.1"}
    assert names(bag, free) == {"named.gate", "named.bias"}


def test_a_module_used_twice_stands_in_one_group():
    shared = nn.Linear(4, 4)
    groups = param_groups(nn.Sequential(shared, nn.ReLU(), shared), weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -1.0}, "weight_decay must be zero or more"),
        ({"weight_decay": 0.1, "layer_decay": 0.5}, "lr must be given with layer_decay"),
        ({"weight_decay": 0.1, "layer_decay": 1.5, "lr": 1.0}, "layer_decay must be a factor"),
        ({"weight_decay": 0.1, "layer_decay": 0.5, "lr": 1.0}, "layer_decay must be used with layers="),
        ({"weight_decay": 0.1, "layers": ["a", "b"]}, "layers must be given with layer_decay"),
        ({"weight_decay": 0.1, "lr": -1.0}, "lr must be zero or more"),
        ({"weight_decay": 0.1, "no_decay": ["nothing*"]}, "a pattern that matches a name"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        param_groups(nn.Linear(3, 2), **options)


def test_one_string_is_not_a_list_of_patterns():
    with pytest.raises(TypeError, match=r"no_decay must be a list of names"):
        param_groups(nn.Linear(3, 2), weight_decay=0.1, no_decay="bias")


def test_lazy_parameters_are_refused_by_name():
    with pytest.raises(ValueError, match=r"run on one batch first: a lazy parameter .* got '0.weight'"):
        param_groups(nn.Sequential(nn.LazyLinear(3)), weight_decay=0.1)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        param_groups(nn.Linear(3, 2).requires_grad_(False), weight_decay=0.1)
