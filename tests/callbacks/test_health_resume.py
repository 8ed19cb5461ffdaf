"""HealthMonitor over a resume: what was read and told before the stop counts on, in one process; see two_watched.py."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from firstlight.callbacks import HealthMonitor
from helpers import Plain, ResumableLoader, fit, loader

EPOCHS, BATCHES = 40, 10


def plain_net() -> nn.Sequential:
    """Return a net whose losses of an epoch have the same mean in any order."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


class InOneOrder(ResumableLoader):
    """The same order in all epochs: between two of them Lightning does not restore a loader."""

    epoch = property(lambda self: 0, lambda self, value: None)


class Sick(Plain):
    """Does not learn, jumps three times, gets worse in validation; in the end, if it is told to, its loss is NaN."""

    def __init__(self, nan_at: int | None = None, net: nn.Module | None = None) -> None:
        torch.manual_seed(1)
        super().__init__(plain_net() if net is None else net, lr=1e-9)
        self.nan_at = nan_at

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        factor = 30.0 if self.global_step in (140, 190, 215) else float("nan") if self.global_step == self.nan_at else 1
        loss = super().training_step(batch, batch_idx)
        # 1 at first, and 1 % less in the end: the gradient is real, the value free of noise
        return loss / loss.detach() * factor * (1 - 2e-5 * self.global_step)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", torch.tensor(1.0 + max(0, self.current_epoch - 11)))


class Save(Callback):
    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def run(module: Plain, *callbacks: Callback, **kwargs: Any) -> tuple[HealthMonitor, dict[str, int]]:
    """Return the monitor after a fit, and the step at which each code was told."""
    monitor = next((c for c in callbacks if isinstance(c, HealthMonitor)), HealthMonitor(budget=0.99))
    others = [c for c in callbacks if c is not monitor]
    settings = {"max_epochs": EPOCHS, "data": InOneOrder(80), "val": loader(shuffle=False, num_samples=8)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(module, monitor, *others, **(settings | kwargs))
    told = [str(w.message).split(": ")[:2] for w in said if ": FL" in str(w.message)]
    codes = [what.split()[0] for _, what in told]
    assert len(codes) == len(set(codes)), "nothing is told twice"
    return monitor, {code: int(step.split()[1]) for code, (step, _) in zip(codes, told, strict=True)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    keep = ModelCheckpoint(folder, filename="epoch{epoch}", auto_insert_metric_name=False, save_top_k=-1)
    return folder, *run(Sick(), Save(folder, (7, 133, 197, 322)), keep, enable_checkpointing=True)


def test_an_unbroken_run_tells_all_of_it(unbroken):
    _, monitor, told = unbroken
    assert told.keys() >= {"FL612", "FL613", "FL615"}
    assert {found.code for found in monitor.findings} == told.keys() | {"FL614"}
    assert monitor._readings.steps == EPOCHS * BATCHES


@pytest.mark.parametrize("stop", ["7", "133", "197", "322", "epoch0", "epoch14", "epoch29"])
def test_a_resumed_run_tells_what_the_unbroken_one_tells_from_there(stop, unbroken):
    folder, whole, told = unbroken
    monitor, told_again = run(Sick(), ckpt=folder / f"{stop}.ckpt")
    step = int(stop) if stop.isdigit() else (int(stop.removeprefix("epoch")) + 1) * BATCHES
    assert told_again == {code: at for code, at in told.items() if at > step}
    assert [str(found) for found in monitor.findings] == [str(found) for found in whole.findings]
    assert monitor.findings == whole.findings
    assert monitor.report.readings == whole.report.readings
    assert monitor.report.findings == whole.report.findings
    assert monitor._samples == whole._samples == EPOCHS * BATCHES // 10


def test_a_loss_that_nobody_had_read_at_the_stop_is_found_after_it(tmp_path):
    whole, told = run(Sick(nan_at=122), Save(tmp_path, (130,)), max_epochs=16)
    monitor, told_again = run(Sick(), ckpt=tmp_path / "130.ckpt", max_epochs=16)
    (found,) = [found for found in monitor.findings if found.code == "FL611"]
    assert found.value == 122.0
    assert found in whole.findings
    assert told["FL611"] == told_again["FL611"] == 150


@pytest.mark.parametrize("kind", ["no state", "another model"])
def test_a_checkpoint_that_is_of_no_use_is_none(kind, tmp_path, caplog):
    if kind == "no state":
        fit(Sick(), Save(tmp_path, (103,)), data=InOneOrder(80), max_epochs=11)
        module = Sick()
    else:
        run(Sick(), Save(tmp_path, (103,)), max_epochs=11)
        module = Sick(net=nn.Sequential(nn.Identity(), *plain_net()))
        module.strict_loading = False
    with caplog.at_level("INFO"):
        monitor, told = run(module, ckpt=tmp_path / "103.ckpt", max_epochs=50)
    assert ("begins anew" in caplog.text) == (kind == "another model")
    assert monitor._readings.steps == 500 - 103
    # of a run that is met late it is not known whether it has moved
    assert monitor.report.skipped["FL612"].startswith("the run was met on its way")
    assert monitor.report.skipped["FL507"].startswith("the run was met on its way")
    assert told == {}, "what is told hangs on where the losses began"
    assert "FL615" in {found.code for found in monitor.findings}


def test_two_that_ask_different_things_keep_what_each_has_found(tmp_path):
    def two() -> list[HealthMonitor]:
        return [HealthMonitor(budget=0.99, checks=["FL613"]), HealthMonitor(budget=0.99, checks=["FL615", "FL612"])]

    first, second = two(), two()
    run(Sick(), *first, Save(tmp_path, (240,)), max_epochs=24)
    run(Sick(), *second, ckpt=tmp_path / "240.ckpt", max_epochs=24)
    for before, after in zip(first, second, strict=True):
        assert {found.code for found in after.findings} == {found.code for found in before.findings} != set()
