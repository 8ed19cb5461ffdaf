"""Each fault that HealthMonitor knows, on a Trainer: found under its code, at its place; its healthy twin is silent."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

import pytest
import torch
from callbacks.test_health_monitor import deep, watched
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import GradientClipping, HealthMonitor
from firstlight.checks import Severity
from helpers import Plain, classes_data, loader

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


class Jumps(Plain):
    """Its loss is ``factor`` times what it is, at some steps; with ``stays`` from the first of them on."""

    def __init__(self, factor: float, at: tuple[int, ...], *, stays: bool = False) -> None:
        super().__init__(deep(1, nn.ReLU), lr=1e-4)
        self.factor, self.at, self.stays = factor, at, stays

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        jumps = self.global_step in self.at or (self.stays and self.global_step >= self.at[0])
        return loss * self.factor if jumps else loss


class Decays(Plain):
    """Decay that leaves nothing of the weights but the last update, or hardly touches them."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.lr, betas=(0.0, 0.0))


class TwoRates(Plain):
    """The head has a rate of its own."""

    def __init__(self, head: float) -> None:
        super().__init__(deep(1, nn.ReLU))
        self.head = head

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[:-1].parameters()}, {"params": self.net[-1].parameters(), "lr": self.head}]
        return torch.optim.SGD(groups, lr=0.01)


def normed(layers: int) -> nn.Sequential:
    """Batch norm without residual connections: gradients grow by about 1.2 a layer on their way back (1902.08129)."""
    torch.manual_seed(1)
    parts = [part for _ in range(layers) for part in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *parts, nn.Linear(16, 4))


def by_he(layers: int) -> nn.Sequential:
    net = deep(layers, nn.ReLU)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return net


def saturated(factor: float) -> nn.Sequential:
    net = deep(1, nn.Tanh)
    with torch.no_grad():
        net[2].weight.mul_(factor)
    return net


def dead(bias: float) -> nn.Sequential:
    net = deep(1, nn.ReLU)
    with torch.no_grad():
        net[2].bias.fill_(bias)
    return net


class LogOf(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x.abs() + self.shift)


def log_of_zero(shift: float) -> Plain:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), LogOf(shift), nn.Linear(16, 4))
    return Plain(net, lr=1e-3)


class Row(NamedTuple):
    code: str
    severity: Severity
    where: str
    sick: Any
    healthy: Any
    settings: dict[str, Any]
    says: str = ""


BIG = {"data": loader(num_samples=512, batch_size=256), "max_epochs": 10}
SMALL = {"max_epochs": 30}  # 12 batches each
ROWS = {
    "dead units": Row(
        "FL202", ERROR, "net.3", lambda: Plain(dead(-1e4), lr=1e-3), lambda: Plain(dead(0.0), lr=1e-3), BIG
    ),
    "saturation": Row(
        "FL203", INFO, "net.3", lambda: Plain(saturated(1e3), lr=1e-3), lambda: Plain(saturated(1.0), lr=1e-3), BIG
    ),
    "vanishing": Row(
        "FL402",
        ERROR,
        "net.0.weight",
        lambda: Plain(deep(20, nn.Sigmoid), lr=1e-3),
        lambda: Plain(by_he(20), lr=1e-3),
        BIG,
        "vanishing",
    ),
    "exploding": Row(
        "FL402",
        ERROR,
        "net.2.weight",
        lambda: Plain(normed(60), lr=1e-9),
        lambda: Plain(normed(6), lr=1e-9),
        BIG,
        "exploding",
    ),
    "never moves": Row(
        "FL507", ERROR, "net.4.weight", lambda: TwoRates(1e-12), lambda: TwoRates(1e-2), {"max_epochs": 10}
    ),
    "not finite": Row("FL611", ERROR, "net.2", lambda: log_of_zero(0.0), lambda: log_of_zero(1e-3), {"max_epochs": 5}),
    "not learning": Row("FL612", WARNING, "", lambda: Plain(lr=1e-9), lambda: Plain(lr=0.05), SMALL),
    "jumps": Row(
        "FL613", WARNING, "step 150", lambda: Jumps(30.0, (150, 180, 250)), lambda: Jumps(1.5, (150, 180, 250)), SMALL
    ),
    "two jumps": Row(
        "FL613", WARNING, "step 150", lambda: Jumps(30.0, (150, 180, 250)), lambda: Jumps(30.0, (150, 180)), SMALL
    ),
    "a jump that stays": Row(
        "FL613",
        WARNING,
        "step 200",
        lambda: Jumps(30.0, (200,), stays=True),
        lambda: Jumps(1.5, (200,), stays=True),
        SMALL,
        "and stayed",
    ),
    "long updates": Row(
        "FL615", INFO, "", lambda: Decays(deep(1, nn.Tanh), lr=1.0), lambda: Decays(deep(1, nn.ReLU), lr=1e-3), SMALL
    ),
    "short updates": Row(
        "FL615", WARNING, "", lambda: Plain(deep(1, nn.ReLU), lr=1e-8), lambda: Plain(deep(1, nn.ReLU)), SMALL
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_fault_is_found_at_its_place_and_its_healthy_twin_is_silent(row):
    def of(module: Plain) -> tuple[list[Any], list[str]]:
        monitor, said = watched(module, budget=0.99, checks=[row.code, "FL612"], **row.settings)
        return [found for found in monitor.findings if found.code == row.code], said

    (found,), said = of(row.sick())
    assert (found.severity, found.where) == (row.severity, row.where or found.where)
    assert row.says in str(found)
    assert sum(row.code in text for text in said) == (row.severity > INFO), "a warning is told, once, a fact is not"
    found, said = of(row.healthy())
    assert (found, [text for text in said if row.code in text]) == ([], [])


class Overfits(Plain):
    """Labels of training are noise, so that what is learned of them cannot hold elsewhere; or they are the truth."""

    def __init__(self, *, noise: bool) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)))
        self.noise = noise

    def train_dataloader(self) -> DataLoader:
        inputs, target = classes_data(64).tensors
        given = torch.randint(4, (64,), generator=torch.Generator().manual_seed(2)) if self.noise else target
        return DataLoader(TensorDataset(inputs, given), batch_size=16)


@pytest.mark.parametrize("noise", [True, False])
def test_overfitting_is_a_fact_of_the_report_and_not_told(noise):
    monitor, said = watched(
        Overfits(noise=noise), data=Overfits(noise=noise).train_dataloader(), max_epochs=30, val=loader(shuffle=False)
    )
    found = [found for found in monitor.findings if found.code == "FL614"]
    assert said == []
    assert [f.severity for f in found] == [INFO] * noise
    if noise:
        losses = monitor._readings.val
        assert len(losses) == 30
        assert found[0].value == pytest.approx(min(losses[-3:]) / min(losses) - 1)


class Norms(Callback):
    """Records what each step's gradient came to before clipping and at the end of its batch."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    def norm_of(self, module: nn.Module) -> float:
        return math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before.append(self.norm_of(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.after += [self.norm_of(pl_module)] if len(self.after) < len(self.before) else []


class ClipsItself(Plain):
    limit = 0.0

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.limit)


CLIPS = {
    "trainer, by norm": lambda limit: (Plain, [], {"gradient_clip_val": limit}),
    "trainer, by value": lambda limit: (Plain, [], {"gradient_clip_val": limit, "gradient_clip_algorithm": "value"}),
    "callback, by norm": lambda limit: (Plain, [GradientClipping(limit)], {}),
    "callback, by value": lambda limit: (Plain, [GradientClipping(max_value=limit)], {}),
    "callback, by unit": lambda limit: (Plain, [GradientClipping(adaptive=limit)], {}),
    "the module's own": lambda limit: (ClipsItself, [], {}),
}


@pytest.mark.parametrize(
    ("kind", "accumulate"), [*((kind, 1) for kind in CLIPS), ("trainer, by norm", 2), ("callback, by norm", 2)]
)
def test_clipping_that_bites_is_measured_whoever_clips(kind, accumulate):
    def of(limit: float) -> tuple[HealthMonitor, Norms, list[str]]:
        make, more, settings = CLIPS[kind](limit)
        module, norms = make(deep(1, nn.ReLU), lr=1e-2), Norms()
        module.limit = limit
        monitor, said = watched(
            module,
            norms,
            *more,
            budget=0.99,
            max_epochs=27 * accumulate,
            accumulate_grad_batches=accumulate,
            **settings,
        )
        return monitor, norms, [text for text in said if "FL616" in text]

    monitor, norms, said = of(1e-4)
    (found,) = [found for found in monitor.findings if found.code == "FL616"]
    sampled = range(0, 324, 10 // accumulate)
    kept = [norms.after[step] / norms.before[step] for step in sampled]
    assert list(monitor._readings.clipped) == pytest.approx(kept, rel=1e-4)
    assert (found.severity, found.value, len(said)) == (WARNING, 1.0, 1), "at this limit nothing is learned"
    assert f"to {statistics.median_high(kept):.2g} of its norm" in found.message
    monitor, _, said = of(1e4)
    assert set(monitor._readings.clipped) == {1.0}
    assert [found for found in monitor.findings if found.code == "FL616"] == said == []


def test_clipping_every_step_of_a_run_that_learns_is_a_fact():
    monitor, said = watched(Plain(deep(1, nn.ReLU), lr=0.5), budget=0.99, gradient_clip_val=0.05, max_epochs=27)
    (found,) = [found for found in monitor.findings if found.code == "FL616"]
    assert (found.severity, said) == (INFO, [])


def test_updates_of_accumulated_gradients_are_seen():
    """Every tenth batch is never the second of two."""
    monitor, _ = watched(Plain(deep(1, nn.ReLU)), budget=0.99, max_epochs=10, accumulate_grad_batches=2)
    assert len(monitor._readings.ratios) == 12
    assert monitor._readings.activation_samples == 8


@pytest.mark.parametrize("accumulate", [1, 4])
def test_whether_it_learns_is_asked_after_enough_steps_and_not_batches(accumulate):
    monitor, _ = watched(Plain(lr=1e-9), budget=0.99, max_epochs=30, accumulate_grad_batches=accumulate)
    assert ("FL612" in monitor.report.skipped) == (accumulate == 4), "360 batches, 90 steps"
