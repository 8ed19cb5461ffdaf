"""ActivationPenalty: each forward pass is counted once, whatever runs around it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from firstlight.losses import CrossEntropyLoss
from firstlight.modules import SupervisedModule
from firstlight.regularizers import ActivationPenalty
from helpers import fit, loader


class Blocks(nn.Module):
    """Two blocks, which can be recomputed in the backward pass."""

    def __init__(self, recompute: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
        self.head = nn.Linear(5, 1)
        self.recompute = recompute

    def forward(self, x):
        if self.recompute == "block":
            x = checkpoint(self.first, x, use_reentrant=False)
            return self.head(checkpoint(self.second, x, use_reentrant=False))
        if self.recompute == "layer":  # no module that holds the watched layer is called when it is recomputed
            x = checkpoint(self.first[1], self.first[0](x), use_reentrant=False)
            return self.head(checkpoint(self.second[1], self.second[0](x), use_reentrant=False))
        return self.head(self.second(self.first(x)))


LAYERS = ["first.1", "second.1"]


def by_hand(net: Blocks, x: torch.Tensor) -> torch.Tensor:
    first = torch.relu(net.first[0](x))
    second = torch.relu(net.second[0](first))
    return 0.3 * (first.abs().sum() + second.abs().sum()) / len(x)


def batch() -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("recompute", ["", "block", "layer"])
def test_value_and_gradients_by_hand_step_after_step(recompute):
    """Under checkpointing too, where each layer runs twice a step."""
    net, reference = Blocks(recompute), Blocks()
    penalty = ActivationPenalty(0.3, LAYERS).attach(net)
    for _ in range(3):
        net.zero_grad()
        reference.zero_grad()
        output = net(batch()).mean()
        value = penalty(net)
        (output + value).backward()
        expected = by_hand(reference, batch())
        (reference(batch()).mean() + expected).backward()
        torch.testing.assert_close(value, expected)
        for mine, other in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("recompute", ["", "block", "layer"])
def test_reading_after_the_backward_pass_gives_the_same(recompute):
    """Recomputation neither adds to what was seen nor forgets it."""
    net = Blocks(recompute)
    penalty = ActivationPenalty(0.3, LAYERS).attach(net)
    output = net(batch()).mean()
    before = penalty(net)
    (output + before).backward()
    assert penalty(net).item() == before.item()


def test_a_recomputed_layer_that_no_watched_module_holds():
    """Called straight from a training step: what is recomputed must not count as a part of the next pass."""
    layers = nn.ModuleDict({"first": nn.Linear(3, 5), "act": nn.ReLU(), "last": nn.Linear(5, 2)})
    penalty = ActivationPenalty(0.3, ["act"]).attach(layers)

    def region(x):
        return layers["last"](layers["act"](layers["first"](x)))  # the last layer needs the watched one recomputed

    for _ in range(3):
        output = checkpoint(region, batch(), use_reentrant=False)
        value = penalty(layers)
        (output.square().mean() + value).backward()
        torch.testing.assert_close(value, 0.3 * torch.relu(layers["first"](batch())).sum() / len(output))


def test_patterns_name_layers_too():
    net = Blocks()
    by_pattern = ActivationPenalty(0.3, ["*.1"]).attach(net)
    net(batch())
    torch.testing.assert_close(by_pattern(net), by_hand(net, batch()))


def test_reading_twice_gives_the_same():
    net = Blocks()
    penalty = ActivationPenalty(0.3, LAYERS).attach(net)
    net(batch())
    assert penalty(net).item() == penalty(net).item()


def test_a_pass_that_was_not_read_is_forgotten():
    net = Blocks()
    penalty = ActivationPenalty(0.3, LAYERS).attach(net)
    net(10 * batch())
    net(batch())
    torch.testing.assert_close(penalty(net), by_hand(net, batch()))


def test_lbfgs_closures_do_not_add_up():
    def train(penalized):
        net = Blocks()
        cost = penalized(net)
        optimizer = torch.optim.LBFGS(net.parameters(), max_iter=8, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            output = net(batch())
            loss = (output - 1).square().mean() + cost(net)
            loss.backward()
            return loss

        return optimizer.step(closure).item(), net.head.weight.detach()

    def watched(net):
        return ActivationPenalty(0.3, LAYERS).attach(net)

    value, weight = train(watched)
    expected, weight_by_hand = train(lambda net: lambda net: by_hand(net, batch()))
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(weight, weight_by_hand, rtol=1e-4, atol=1e-5)


def test_parts_called_one_after_the_other_count_together():
    """An encoder and a decoder, each called by itself: entering the second does not forget the first."""
    net = Blocks()
    penalty = ActivationPenalty(0.3, LAYERS).attach(net)
    for _ in range(2):
        net.head(net.second(net.first(batch())))
        torch.testing.assert_close(penalty(net), by_hand(net, batch()))


def test_a_layer_used_twice_in_a_pass_counts_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.act(x) + 1)

    net = Twice()
    penalty = ActivationPenalty(1.0, ["act"]).attach(net)
    net(torch.ones(1, 2))
    assert penalty(net).item() == 2 + 4


def test_passes_without_gradients_are_not_seen():
    net = Blocks()
    penalty = ActivationPenalty(0.3, LAYERS).attach(net)
    with torch.no_grad():
        net(batch())
    with pytest.raises(ValueError, match="with gradients"):
        penalty(net)


def test_a_pass_that_fails_leaves_no_trace():
    net = Blocks()
    penalty = ActivationPenalty(0.3, LAYERS).attach(net)
    with pytest.raises(RuntimeError):
        net.head(net.second(net.first(batch()))[:, :2])
    with pytest.raises(RuntimeError):
        net(torch.ones(1, 2))
    net(batch())
    net(batch())
    torch.testing.assert_close(penalty(net), by_hand(net, batch()))


def test_a_copy_watches_itself():
    """Inside the module that it watches, as in a LightningModule: the copy's penalty reads the copy's layers."""
    whole = nn.ModuleDict({"net": Blocks(), "penalty": ActivationPenalty(0.3, ["net.first.1", "net.second.1"])})
    whole["penalty"].attach(whole)
    whole["net"](batch())
    for copied in (copy.deepcopy(whole), torch.load(_saved(whole), weights_only=False)):
        with torch.no_grad():
            copied["net"].first[0].weight.mul_(2)
        copied["net"](batch())
        torch.testing.assert_close(copied["penalty"](copied), by_hand(copied["net"], batch()))
    torch.testing.assert_close(whole["penalty"](whole), by_hand(whole["net"], batch()))


def _saved(module: nn.Module) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return buffer


def test_detaching_takes_all_hooks_away():
    net = Blocks()
    penalty = ActivationPenalty(0.3, LAYERS).attach(net).attach(net)
    penalty.detach()
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


def test_half_precision_activations_sum_in_float32():
    net = nn.Sequential(nn.Identity())
    penalty = ActivationPenalty(1.0, ["0"]).attach(net)
    net(torch.full((1, 1000), 100.0, dtype=torch.float16))
    assert penalty(net).item() == 1e5


# The compiler looks at .grad of whatever crosses a break of the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_a_compiled_model_is_watched_too():
    net, reference = Blocks(), Blocks()
    penalty = ActivationPenalty(0.3, LAYERS).attach(net)
    compiled = torch.compile(net, backend="eager")
    for _ in range(2):
        compiled(batch())
        torch.testing.assert_close(penalty(net), by_hand(reference, batch()))


def test_inside_a_training_module():
    """As a penalty of a SupervisedModule, whose training step calls the model and not the module itself."""
    module = SupervisedModule(
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)),
        CrossEntropyLoss(),
        penalties=[ActivationPenalty(0.5, ["model.1"])],
    )
    module.penalties["activation"].attach(module)
    fit(module, data=loader(), max_epochs=1)
    data = next(iter(loader(shuffle=False)))
    module.train()
    module(data[0])
    expected = 0.5 * torch.relu(module.model[0](data[0])).sum() / len(data[0])
    torch.testing.assert_close(module.penalties["activation"](module), expected)
