"""HealthMonitor: faults that come up in training are named once, healthy twins stay silent, nothing is left behind."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import HealthMonitor
from firstlight.checks import Severity
from firstlight.preflight import PreflightReport
from helpers import CountReads, Plain, TwoOptimizers, fit, loader, same, weights


def watched(
    module: LightningModule, *others: Any, budget: float = 0.9, **kwargs: Any
) -> tuple[HealthMonitor, list[str]]:
    """Fit with a monitor; return it and what it warned of."""
    monitor = HealthMonitor(budget=budget, checks=kwargs.pop("checks", None))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(module, monitor, *others, **kwargs)
    assert torch.overrides._len_torch_function_stack() == 0
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())
    return monitor, [str(w.message) for w in said if ": FL" in str(w.message)]


def codes(monitor: HealthMonitor) -> set[str]:
    return {found.code for found in monitor.findings if found.severity >= Severity.WARNING}


def plain(**kwargs: Any) -> Plain:
    torch.manual_seed(1)
    return Plain(**kwargs)


def with_one_bad_batch(value: float) -> DataLoader:
    data = loader(shuffle=False).dataset
    inputs, target = (tensor.clone() for tensor in data.tensors)
    inputs[5 * 8, 0] = value
    return DataLoader(TensorDataset(inputs, target), batch_size=8)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_is_named_at_its_step_and_module(accumulate):
    module = plain(net=nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    data = with_one_bad_batch(float("nan"))
    monitor, said = watched(module, data=data, max_epochs=1, accumulate_grad_batches=accumulate)
    (found,) = [found for found in monitor.findings if found.code == "FL611"]
    assert (found.value, found.where, found.severity) == (5.0, "net.0", Severity.ERROR)
    assert sum("FL611" in text for text in said) == 1
    assert monitor.report.root.code == "FL611"
    assert codes(watched(plain(), data=with_one_bad_batch(0.5), max_epochs=1)[0]) == set()


def test_the_replay_leaves_the_run_as_it_was():
    left = []
    for callbacks in ([], [HealthMonitor()]):
        module = plain()  # with batch norm and dropout, whose buffers and numbers a replay could touch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(module, *callbacks, data=with_one_bad_batch(float("nan")), max_epochs=1)
        left.append({**weights(module), "rng": torch.random.get_rng_state()})
    assert all(torch.equal(left[0][k].nan_to_num(7.0), left[1][k].nan_to_num(7.0)) for k in left[0])


def deep(layers: int, function: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(1)
    hidden = [part for _ in range(layers) for part in (nn.Linear(16, 16), function())]
    return nn.Sequential(nn.Linear(8, 16), function(), *hidden, nn.Linear(16, 4))


class Dies(Plain):
    """After 20 steps the first bias is far below zero: its units see no input any more."""

    at = 20

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == self.at:
            with torch.no_grad():
                self.net[0].bias.fill_(-1e4)
        return super().training_step(batch, batch_idx)


def test_units_that_die_in_training_are_named():
    data = loader(num_samples=512, batch_size=256)
    net = deep(1, nn.ReLU)
    module = Dies(net, lr=1e-3)
    monitor, said = watched(module, data=data, max_epochs=120)
    assert any(found.code == "FL202" and "net.1" in found.where + found.message for found in monitor.findings)
    assert len(said) == len({text.split(": ")[1] for text in said}), "nothing is said twice"
    alive = Dies(deep(1, nn.ReLU), lr=1e-3)
    alive.at = -1
    assert codes(watched(alive, data=data, max_epochs=120)[0]) == set()


@pytest.mark.parametrize(
    ("code", "sick", "healthy"),
    [
        ("FL203", nn.Sequential(nn.Flatten(), *deep(1, nn.Tanh)), nn.Sequential(nn.Flatten(), *deep(1, nn.Tanh))),
        ("FL402", deep(20, nn.Sigmoid), deep(2, nn.ReLU)),
    ],
)
def test_saturated_and_vanishing_layers_are_named(code, sick, healthy):
    if code == "FL203":
        with torch.no_grad():
            sick[1].weight.mul_(1e3)
    data = loader(num_samples=512, batch_size=256)
    monitor, _ = watched(Plain(sick, lr=1e-3), data=data, max_epochs=110, checks=[code])
    assert {found.code for found in monitor.findings} == {code}  # saturation alone is a fact
    assert watched(Plain(healthy, lr=1e-3), data=data, max_epochs=110, checks=[code])[0].findings == []


def test_a_run_that_does_not_learn_is_named():
    frozen, _ = watched(plain(lr=1e-9), max_epochs=40)
    assert "FL612" in codes(frozen)
    assert codes(watched(plain(lr=0.05), max_epochs=40)[0]) == set()


def test_an_exception_leaves_nothing_and_a_report(tmp_path):
    class Breaks(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 10:  # a sampled step
                self.net(batch[0])
                raise RuntimeError("the end")
            return super().training_step(batch, batch_idx)

    monitor, module = HealthMonitor(), Breaks()
    with pytest.raises(RuntimeError, match="the end"):
        fit(module, monitor, logger=CSVLogger(tmp_path, name="", version=""))
    assert torch.overrides._len_torch_function_stack() == 0
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())
    kept = PreflightReport.from_json((tmp_path / "health.json").read_text(encoding="utf-8"))
    assert {result.code for result in kept.results} >= {"FL611", "FL202"}
    assert (tmp_path / "health.html").read_text(encoding="utf-8").startswith("<!")


def test_two_monitors_see_the_same_and_come_to_an_end():
    one, two = HealthMonitor(budget=0.9, checks=["FL202"]), HealthMonitor(budget=0.9)
    fit(plain(), one, two)
    assert torch.overrides._len_torch_function_stack() == 0
    assert one._readings.activation_samples == two._readings.activation_samples == 8


def test_a_loss_for_each_sample_may_go_backward():
    class PerSample(TwoOptimizers):
        def training_step(self, batch, batch_idx):
            losses = self.net(batch[0]).square().mean(1)
            self.manual_backward(losses, gradient=torch.ones_like(losses))

    monitor = HealthMonitor()
    fit(PerSample(), monitor, max_steps=-1, max_epochs=1)
    assert monitor.report is not None


@pytest.mark.parametrize("kind", ["manual", "bf16-mixed", "compiled"])
def test_other_ways_to_train(kind):
    module = TwoOptimizers() if kind == "manual" else plain()
    if kind == "compiled":
        module.net[0].compile(backend="eager")
    kwargs = {"precision": "bf16-mixed"} if kind == "bf16-mixed" else {}
    monitor, said = watched(module, **kwargs)
    assert said == []
    assert monitor._readings.ratios, "updates are seen"
    assert ("FL203" in monitor.report.skipped) == (kind != "bf16-mixed")  # the manual one has no activation function
    assert "too few" in monitor.report.skipped["FL202"] or kind != "bf16-mixed", "eight samples do not make a unit dead"


def test_a_second_fit_starts_anew():
    monitor = HealthMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(plain(), monitor, data=with_one_bad_batch(float("nan")), max_epochs=1)
    assert codes(monitor) == {"FL611"}
    fit(plain(), monitor, max_epochs=1)
    assert codes(monitor) == set()
    assert monitor.report.root is None


def test_no_wait_between_reports():
    counter = CountReads()

    class Counted(Plain):
        seen: list[int]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(counter.reads)

    def reads(*callbacks: Any) -> list[int]:
        torch.manual_seed(1)
        module = Counted()
        module.seen = []
        with counter:
            fit(module, *callbacks, max_epochs=4)
        return [after - before for before, after in zip(module.seen, module.seen[1:], strict=False)][12:40]

    assert reads(HealthMonitor(budget=1e-9)) == reads()


def test_the_budget_is_kept():
    monitor = HealthMonitor(budget=0.2)
    fit(plain(), monitor, max_epochs=40)
    assert monitor.overhead < 0.3
    assert len(monitor._readings.ratios) > 5


def test_a_fault_is_logged_under_its_code(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = fit(plain(), HealthMonitor(), data=with_one_bad_batch(float("nan")), max_epochs=10)
    assert float(run.callback_metrics["check/FL611"]) == 1.0


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"FL202.*got .FL999."):
        HealthMonitor(checks=["FL999"])
    with pytest.raises(ValueError, match="budget"):
        HealthMonitor(budget=0.0)


def test_a_subset_asks_only_that(tmp_path):
    monitor = HealthMonitor(checks=["FL611"])
    fit(plain(), monitor, logger=CSVLogger(tmp_path, name="", version=""))
    kept = json.loads((tmp_path / "health.json").read_text(encoding="utf-8"))
    assert [result.code for result in monitor.report.results] == ["FL611"]
    assert "FL611" in json.dumps(kept)


def test_weights_are_those_of_the_bare_run_with_validation_in_between():
    modules = [plain(), plain()]
    for module, callbacks in zip(modules, ([], [HealthMonitor(budget=0.9)]), strict=True):
        torch.manual_seed(4)
        fit(module, *callbacks, val=loader(shuffle=False), val_check_interval=0.5)
    assert same(weights(modules[0]), weights(modules[1]))


def test_updates_in_a_trough_of_the_schedule_are_not_held_against_the_run():
    class Falls(Plain):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            for group in self.optimizers().param_groups:
                group["lr"] = 0.1 if self.global_step < 5 else 1e-3

    monitor = HealthMonitor(budget=0.99)
    fit(Falls(deep(1, nn.ReLU)), monitor, max_epochs=3)
    assert 1 <= len(monitor._readings.ratios) <= 5 < monitor._readings.steps, "those at the full rate alone"


@pytest.mark.parametrize("rates", [(0.1, 1e-12), (1e-12, 1e-12)], ids=["ends in a trough", "never moves"])
def test_weights_that_stand_still_at_the_end_of_a_schedule_have_moved_before(rates):
    class Falls(Plain):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            for group in self.optimizers().param_groups:
                group["lr"] = rates[self.global_step >= 30]

    torch.manual_seed(1)
    monitor, said = watched(Falls(deep(1, nn.ReLU)), budget=0.99, max_epochs=30, checks=["FL507"])
    assert ("FL507" in codes(monitor)) == (rates[0] < 0.1)
    assert any("did not move in" in text for text in said) == (rates[0] < 0.1)
