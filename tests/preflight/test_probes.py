"""What probes read from tiny modules, faulty and sound, against closed forms and the real run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from preflight.setups import Step, Tokens
from torch import Tensor, nn

from firstlight._rng import isolated_rng
from firstlight.callbacks import LearningRateScheduler
from firstlight.checks import Evidence, Finding, Severity
from firstlight.preflight import repaired
from firstlight.preflight._bench import Bench, on_bench
from firstlight.preflight._layout import layout_of
from firstlight.preflight._probe_loss import probe_loss
from firstlight.preflight._probe_network import probe_network
from firstlight.preflight._probe_optimizer import probe_optimizers
from firstlight.preflight._probe_pair import probe_pair
from firstlight.preflight._probe_step import probe_steps
from firstlight.preflight._repairs import REPAIRS
from firstlight.preflight._subject import Subject
from firstlight.preflight._twin import Plan
from firstlight.schedules import WarmupCosine
from helpers import Plain, Rates, classes_data, fit, loader, network, same, weights


def probed(module: Any, *batches: Any, plan: Plan | None = None) -> Evidence:
    """Return the readings of single steps, and the picture of the schedule."""
    evidence = Evidence()

    def on(bench: Bench) -> None:
        ran = bench.run(bench.batch, detail=True)
        layout = layout_of(bench, bench.batch, ran)
        evidence.add({"inputs": layout.inputs, "targets": layout.targets})
        probe_steps(bench, ran, evidence)
        evidence.add({"schedule": probe_optimizers(bench, evidence)})
        probe_network(bench, ran, layout, evidence)
        probe_loss(bench, bench.batch, bench.run(bench.batch), layout, evidence)

    with isolated_rng(0):
        on_bench(module, plan or Plan(), batches, on)
    return evidence


class Through(Step):
    """A net, and a function of its outputs and the targets."""

    def __init__(self, net: nn.Module, objective: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> None:
        super().__init__(net=net)
        self.objective = objective

    def loss(self, batch: Any) -> Tensor:
        return self.objective(self.net(batch[0]), batch[1])


def classes(*counts: int) -> list[Tensor]:
    target = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return [torch.randn(len(target), 3), target]


HEADS = {
    "sigmoid": (nn.Sigmoid(), (0, 1)),
    "tanh": (nn.Tanh(), (-1, 1)),
    "relu": (nn.ReLU(), (0, None)),
    "linear": (nn.Identity(), (None, None)),
    "log_softmax": (nn.LogSoftmax(1), (None, 0)),
    "softmax": (nn.Softmax(1), (0, 1)),
}


@pytest.mark.parametrize("head", HEADS)
def test_how_far_a_head_reaches(head):
    layer, ends = HEADS[head]
    evidence = probed(Through(nn.Sequential(nn.Linear(3, 4), layer)), classes(8, 8, 8, 8))
    for found, end in zip(evidence["network/reach"], ends, strict=True):
        assert found == (None if end is None else pytest.approx(end, abs=1e-2))
    assert evidence["network/simplex"] == (head == "softmax")
    assert evidence["network/log_simplex"] == (head == "log_softmax")


def entropy(*shares: float) -> float:
    total = sum(shares)
    return -sum(share / total * math.log(share / total) for share in shares)


def mse(outputs: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(outputs, target)


def bce(outputs: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs.squeeze(1), target.float())


NUMBERS = torch.randn(24, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0]) + 5
WEIGHTS = torch.tensor([1.0, 2.0, 10.0])
CONSTANTS: dict[str, Any] = {
    "balanced classes": (F.cross_entropy, nn.Linear(3, 4), classes(6, 6, 6, 6), math.log(4)),
    "unbalanced classes": (F.cross_entropy, nn.Linear(3, 3), classes(20, 10, 2), entropy(20, 10, 2)),
    # each sample counts by its weight, in the sum and in what divides it
    "weighted classes": (
        functools.partial(F.cross_entropy, weight=WEIGHTS),
        nn.Linear(3, 3),
        classes(20, 10, 2),
        entropy(20, 20, 20),
    ),
    "log-probabilities": (
        F.nll_loss,
        nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(1)),
        classes(20, 10, 2),
        entropy(20, 10, 2),
    ),
    "two classes by one logit": (bce, nn.Linear(3, 1), classes(24, 8), entropy(24, 8)),
    "numbers": (mse, nn.Linear(3, 2), [torch.randn(24, 3), NUMBERS], float(NUMBERS.var(0, correction=0).mean())),
    "absolute errors": (
        F.l1_loss,
        nn.Linear(3, 2),
        [torch.randn(24, 3), NUMBERS],
        float((NUMBERS - NUMBERS.median(0).values).abs().mean()),
    ),
    "a sum": (
        functools.partial(F.cross_entropy, reduction="sum"),
        nn.Linear(3, 4),
        classes(6, 6, 6, 6),
        24 * math.log(4),
    ),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_the_best_constant_is_that_of_the_closed_form(case):
    objective, net, batch, expected = CONSTANTS[case]
    assert probed(Through(net, objective), batch)["loss/constant"] == pytest.approx(expected, rel=1e-3)


def test_the_level_is_the_loss_of_even_shares():
    evidence = probed(Through(nn.Linear(3, 3)), classes(20, 10, 2))
    assert evidence["loss/level"] == pytest.approx(math.log(3))


@pytest.mark.parametrize("faulty", [True, False])
def test_what_a_head_cannot_reach(faulty):
    net = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid() if faulty else nn.Identity())
    target = torch.tensor([0.0, 4.0]).repeat(8)[:, None]
    left = probed(Through(net, mse), [torch.randn(16, 3), target])["loss/reachable"]
    # of the numbers below 1 the best constant is 1, with a loss of (1 + 9) / 2; the best answers, 0 and 1, leave 9 / 2
    assert left == pytest.approx(4.5 / 5 if faulty else 0.0, abs=1e-2)


@pytest.mark.parametrize(("reduction", "ratio"), [("mean", 1), ("sum", 2)])
def test_the_same_batch_twice(reduction, ratio):
    objective = functools.partial(F.cross_entropy, reduction=reduction)
    assert probed(Through(nn.Linear(3, 4), objective), classes(6, 6, 6, 6))["loss/doubling"] == pytest.approx(ratio)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("faulty", [True, False])
def test_outputs_against_targets_of_other_shape(faulty):
    target = torch.randn(16) if faulty else torch.randn(16, 1)
    evidence = probed(Through(nn.Linear(3, 1), mse), [torch.randn(16, 3), target])
    assert (evidence["loss/coupling"] > 1e-2) == faulty
    assert evidence["loss/broadcast"] == ([[16, 1], [16]] if faulty else [])


@pytest.mark.parametrize(("weight", "pull"), [(None, 1.0), (WEIGHTS, 10.0)])
def test_how_hard_the_rarest_class_pulls(weight, pull):
    module, batch = Through(nn.Linear(3, 3), functools.partial(F.cross_entropy, weight=weight)), classes(20, 10, 2)
    evidence = Evidence({"targets/rarest": 2, "targets/counts": {0: 20, 1: 10, 2: 2}})

    def on(bench: Bench) -> None:
        ran = bench.run(batch)
        probe_loss(bench, batch, ran, layout_of(bench, batch, ran), evidence)

    on_bench(module, Plan(), [batch], on)
    assert evidence["loss/rare_weight"] == pytest.approx(pull, rel=1e-4)


class Transposed(nn.Module):
    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.layer, self.faulty = nn.Linear(16, 4), faulty

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.t().reshape(len(x), -1) if self.faulty else x)


@pytest.mark.parametrize("faulty", [True, False])
def test_samples_that_see_each_other(faulty):
    batch = [torch.randn(32, 16), torch.arange(32) % 4]
    assert (probed(Through(Transposed(faulty)), batch)["network/mixing"] > 1e-4) == faulty


class Dropped(nn.Module):
    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.layer, self.faulty = nn.Linear(3, 4), faulty

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x, 0.5) if self.faulty else F.dropout(x, 0.5, training=self.training))


@pytest.mark.parametrize("faulty", [True, False])
def test_noise_in_eval_mode(faulty):
    difference = probed(Through(Dropped(faulty)), classes(8, 8, 8, 8))["network/eval_difference"]
    assert (difference > 1e-5) == faulty


class NextToken(Step):
    def loss(self, batch: Any) -> Tensor:
        (tokens,) = batch
        return F.cross_entropy(self.head(self.net(tokens[:, :-1])).transpose(1, 2), tokens[:, 1:])


@pytest.mark.parametrize("causal", [True, False])
def test_a_token_that_sees_the_next(causal):
    head = nn.Linear(16 if causal else 32, 12)
    evidence = probed(NextToken(net=Tokens(causal), head=head), [torch.randint(0, 12, (8, 7))])
    assert (evidence["network/look_ahead"] > 1e-4) == (not causal)


class Tagger(Step):
    """A class at each of six places; the way of its outputs into the loss is given."""

    way = ""

    def loss(self, batch: Any) -> Tensor:
        x, target = batch
        scores = self.net(x)
        if self.way == "reshaped":
            return F.cross_entropy(scores.reshape(len(x), 5, 6), target)
        if self.way == "rolled":
            return F.cross_entropy(scores.flatten(0, 1), target.roll(1, 1).flatten())
        if self.way == "flipped":
            return F.cross_entropy(scores.transpose(1, 2), target.flip(0))
        return F.cross_entropy(scores.transpose(1, 2), target)


@pytest.mark.parametrize("way", ["reshaped", "rolled", "flipped", "transposed"])
def test_targets_that_pull_elsewhere(way):
    module = Tagger(net=nn.Linear(3, 5))
    module.way = way
    offsets = probed(module, [torch.randn(8, 6, 3), torch.randint(0, 5, (8, 6))])["loss/offsets"]
    assert (offsets == [[0, 0]] * 3) == (way == "transposed")


class Finds(Step):
    """Finds its inputs and targets by a function of the batch."""

    find: Any = None

    def loss(self, batch: Any) -> Tensor:
        x, target = self.find(batch)
        outputs = self.net(x)
        return F.cross_entropy(outputs, target) if target is not None else F.mse_loss(outputs, x[:, :4])


X, Y, NUMBER = torch.randn(16, 6), torch.arange(16) % 4, torch.arange(16.0)
LAYOUTS: dict[str, Any] = {
    "pair": ([X, Y], lambda batch: batch, (0,), (1,)),
    "targets first": ((Y, X), lambda batch: batch[::-1], (1,), (0,)),
    "dict": ({"label": Y, "number": NUMBER, "x": X}, lambda batch: (batch["x"], batch["label"]), (2,), (0,)),
    "nested": ((X, {"label": Y}), lambda batch: (batch[0], batch[1]["label"]), (0,), (1,)),
    "labels that nobody reads": ([X, Y], lambda batch: (batch[0], None), (0,), ()),
    "one tensor": ([X], lambda batch: (batch[0], None), (0,), ()),
    "one class only": ([X, torch.full((16,), 2)], lambda batch: batch, (0,), (1,)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_and_targets_are_told_apart(layout):
    batch, find, inputs, targets = LAYOUTS[layout]
    module = Finds(net=nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    module.find = find
    evidence = probed(module, batch)
    assert (evidence["inputs"], evidence["targets"]) == (inputs, targets)


class ByHand(Plain):
    """Manual optimization with gradients cleared every ``every`` batches, before the backward or after the step."""

    def __init__(self, every: int, *, first: bool = False, steps_every: int = 1) -> None:
        super().__init__(nn.Linear(8, 4))
        self.automatic_optimization = False
        self.every, self.first, self.steps_every, self.count = every, first, steps_every, 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        if self.first and self.every and self.count % self.every == 0:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.count += 1
        if self.count % self.steps_every == 0:
            optimizer.step()
        if not self.first and self.every and self.count % self.every == 0:
            optimizer.zero_grad()


class NeverCleared(Plain):
    def optimizer_zero_grad(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("module", "stale"),
    [
        (ByHand(0), True),
        (NeverCleared(nn.Linear(8, 4)), True),
        (ByHand(1), False),
        (ByHand(1, first=True), False),
        (ByHand(4, steps_every=4), False),
        (ByHand(4, steps_every=4, first=True), False),
        (Plain(nn.Linear(8, 4)), False),
    ],
    ids=["never", "never, automatic", "after", "before", "accumulated, after", "accumulated, before", "automatic"],
)
def test_old_gradients_that_are_applied_again(module, stale):
    evidence, batch = Evidence({"loss/constant": math.log(4), "loss/initial": 1.5}), [*classes_data(32).tensors]
    with isolated_rng(0):
        probe_pair(Subject(module, Plan(max_epochs=2, num_batches=8), [batch]), batch, evidence, deadline=math.inf)
    assert evidence["gradient/stale"] == (["net.weight", "net.bias"] if stale else [])


class Blocks(Plain):
    def __init__(self, blocks: Any) -> None:
        super().__init__(nn.Linear(8, 4))
        self.blocks = blocks

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        used = blocks_in(self.blocks)
        beside = [b(batch[0]).sum() if isinstance(b, nn.Module) else b.sum() for b in used]
        return super().training_step(batch, batch_idx) + sum(beside)


def blocks_in(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else value
    return [block for v in values for block in (blocks_in(v) if isinstance(v, tuple) else [v])]


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


@pytest.mark.parametrize(
    ("blocks", "found"),
    [
        ([nn.Linear(8, 8), nn.Linear(8, 8)], ["blocks[0]", "blocks[1]"]),
        ({"a": (nn.Linear(8, 8),)}, ["blocks['a'][0]"]),
        ([torch.zeros(3, requires_grad=True)], ["blocks[0]"]),
        (nn.ModuleList([nn.Linear(8, 8)]), []),
        ([frozen(nn.Linear(8, 8))], []),
        ([torch.zeros(3)], []),
    ],
)
def test_modules_that_nobody_registered(blocks, found):
    assert probed(Blocks(blocks), [*classes_data(16).tensors])["model/unregistered"] == found


def test_what_no_gradient_reaches_may_stand_anywhere():
    module = Plain(nn.Linear(8, 4))
    module.blocks = [nn.Linear(8, 8)]
    assert probed(module, [*classes_data(16).tensors])["model/unregistered"] == []


def test_a_bench_puts_counters_modes_and_statistics_back():
    class Counts(Plain):
        count = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.count += 1
            self.net[1].eval()
            return super().training_step(batch, batch_idx)

    def on(bench: Bench) -> None:
        for training in (True, False):
            before = weights(bench.twin)
            bench.twin.count = 7
            bench.twin.net[1].train()
            bench.run(bench.batch, training=training, backward=True)
            seen.append((bench.twin.count, bench.twin.net[1].training, same(before, weights(bench.twin))))

    seen: list[Any] = []
    on_bench(Counts(), Plan(), [[*classes_data(16).tensors]], on)
    assert seen == [(7, True, True)] * 2


class Scheduled(Plain):
    config: Any = {}  # noqa: RUF012

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.config}}


@pytest.mark.parametrize("accumulate", [1, 4, 5])
@pytest.mark.parametrize(
    "config", [{"interval": "step"}, {"interval": "epoch"}, {"frequency": 2}, {"interval": "step", "frequency": 5}]
)
def test_a_simulated_schedule_is_that_of_the_run(config, accumulate):
    module, rates = Scheduled(), Rates()
    module.config = config
    fit(module, rates, data=loader(num_samples=96), max_epochs=4, accumulate_grad_batches=accumulate)
    plan = Plan(max_epochs=4, num_batches=12, accumulate=accumulate)
    evidence = probed(module, [*classes_data(16).tensors], plan=plan)
    assert evidence["schedule"]["rates"] == {"group 0": [rate for (rate,) in rates.seen]}
    assert evidence["schedule/steps"] == len(rates.seen)


@pytest.mark.parametrize("accumulate", [1, 5])
@pytest.mark.parametrize("total_steps", [None, 20])
def test_a_callbacks_schedule_is_played_through(total_steps, accumulate):
    class TwoGroups(Plain):
        def configure_optimizers(self) -> Any:
            groups = [{"params": [p], "lr": rate} for p, rate in zip(self.net.parameters(), (1.0, 0.1), strict=False)]
            return torch.optim.SGD(groups)

    def scheduler() -> LearningRateScheduler:
        return LearningRateScheduler(WarmupCosine(warmup="1ep"), total_steps=total_steps)

    rates = Rates()
    fit(TwoGroups(), scheduler(), rates, data=loader(num_samples=96), max_epochs=4, accumulate_grad_batches=accumulate)
    plan = Plan(max_epochs=4, num_batches=12, accumulate=accumulate, actors=(scheduler(),))
    evidence = probed(TwoGroups(), [*classes_data(16).tensors], plan=plan)
    first, second = zip(*rates.seen, strict=True)
    assert evidence["schedule"]["rates"]["group 0"] == pytest.approx(first, abs=1e-12)
    assert evidence["schedule"]["rates"]["group 1"] == pytest.approx(second, abs=1e-12)
    assert (evidence["schedule/base"], evidence["schedule/holder"]) == (1.0, "LearningRateScheduler")


READINGS = {
    "layout/inputs": (0,), "layout/targets": (1,), "inputs/mean": 0.0, "inputs/std": 2.0, "targets/mean": 0.0,
    "targets/std": 2.0, "network/path": "net", "network/simplex": True, "network/reach": [0.0, 1.0],
    "loss/broadcast": [[8, 4], [8, 4]], "pair/better_factor": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("code", REPAIRS)
def test_a_repair_leaves_the_original_as_it_is(code):
    module = Plain(network())
    before, attributes = weights(module), {key: id(value) for key, value in vars(module).items()}
    finding = Finding(code, Severity.ERROR, "", 1.0, 0.0, "said", "do")
    twin = repaired(module, finding, READINGS)
    assert twin is not None
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in module.parameters())
    x = torch.rand(8, 8)
    twin.on_after_batch_transfer([x, torch.zeros(8)], 0)
    twin.net(x).sum().backward()
    twin.configure_optimizers().step()
    assert {key: id(value) for key, value in vars(module).items()} == attributes
    assert same(before, weights(module))
    assert all(p.grad is None for p in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())


def test_what_needs_a_human_is_not_repaired():
    assert repaired(Plain(), Finding("FL111", Severity.ERROR, "", 1.0, 0.0, "said", "do"), {}) is None


def test_probes_leave_weights_and_statistics_of_the_copy():
    kept: list[Any] = []

    def on(bench: Bench) -> None:
        before = weights(bench.twin)
        ran = bench.run(bench.batch)
        probe_network(bench, ran, layout_of(bench, bench.batch, ran), Evidence())
        kept.append(same(before, weights(bench.twin)))

    on_bench(Plain(network()), Plan(), [[*classes_data(16).tensors]], on)
    assert kept == [True]
