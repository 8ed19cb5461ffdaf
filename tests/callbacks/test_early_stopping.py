"""EarlyStopping: Lightning's decisions, without its latch."""

from __future__ import annotations

from typing import Any

import lightning.pytorch.callbacks as theirs
import pytest
import torch
from lightning.pytorch import Callback

from firstlight.callbacks import EarlyStopping
from helpers import Plain, fit, loader, same, weights


class Scripted(Plain):
    """Its metric follows a script, one value an epoch."""

    def __init__(self, values: list[float]) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.values = values

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(float(self.values[min(self.current_epoch, len(self.values) - 1)])))


def epochs(values: list[float], callback: Callback, **kwargs: Any) -> int:
    settings = {"max_epochs": len(values), "val": loader(shuffle=False), "limit_train_batches": 1}
    return fit(Scripted(values), callback, **(settings | kwargs)).current_epoch


CURVES = [
    [5, 4, 3, 3, 3, 3, 3, 3],
    [5, 4, 3, 4, 3, 2, 2, 2, 2, 2],
    [1, 2, 3, 4, 5],
    [3, float("nan"), 2, 1],
    [5, 4.95, 4.9, 4.85, 4.8, 4.75, 4.7],
]


@pytest.mark.parametrize("values", CURVES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"patience": 2, "min_delta": 0.1}, {"stopping_threshold": 2.5}, {"mode": "max"}]
)
def test_stops_where_lightning_stops(values, options):
    ours = epochs(values, EarlyStopping("val/loss", **options))
    assert ours == epochs(values, theirs.EarlyStopping("val/loss", **options))


def test_a_run_that_recovers_before_min_epochs_goes_on():
    values = [3, 4, 4, 4, 2, 1, 0.9, 0.8, 0.7, 0.6]
    latched = epochs(values, theirs.EarlyStopping("val/loss", patience=2), min_epochs=5)
    stopping = EarlyStopping("val/loss", patience=2)
    assert latched == 5
    assert epochs(values, stopping, min_epochs=5) == 10
    assert stopping.stopping_reason.name == "NOT_STOPPED"


def test_a_run_that_is_still_bad_stops_at_min_epochs():
    stopping = EarlyStopping("val/loss", patience=2)
    assert epochs([3, 4, 4, 4, 4, 4, 4, 4, 4, 4], stopping, min_epochs=5) == 5
    assert stopping.stopping_reason.name == "PATIENCE_EXHAUSTED"
    assert stopping.stopped_epoch == 4


def test_nan_before_min_epochs_is_forgiven():
    assert epochs([3, float("nan"), 2, 1, 0.9], EarlyStopping("val/loss"), min_epochs=4) == 5


def test_an_early_junk_minimum_does_not_count():
    values = [0.1, 5, 4, 3, 2, 1]
    assert epochs(values, EarlyStopping("val/loss", patience=2)) == 3
    assert epochs(values, EarlyStopping("val/loss", patience=2, start_epoch=1)) == 6
    assert epochs(values, EarlyStopping("val/loss", patience=2, start_step=2)) == 6


def test_relative_min_delta():
    values = [100, 98, 96, 94, 92, 90]
    assert epochs(values, EarlyStopping("val/loss", patience=2, min_delta=0.05, min_delta_mode="relative")) == 3
    assert epochs(values, EarlyStopping("val/loss", patience=2, min_delta=0.01, min_delta_mode="relative")) == 6
    rising = [-v for v in values]
    options = {"patience": 2, "min_delta": 0.05, "min_delta_mode": "relative", "mode": "max"}
    assert epochs(rising, EarlyStopping("val/loss", **options)) == 3


def test_best_weights_come_back():
    kept: dict[int, Any] = {}

    class Keep(Callback):
        def on_validation_end(self, trainer, pl_module):
            kept[trainer.current_epoch] = weights(pl_module)

    module = Scripted([3, 1, 2, 2, 2, 2])
    stopping = EarlyStopping("val/loss", patience=2, restore_best=True)
    fit(module, stopping, Keep(), val=loader(shuffle=False), max_epochs=6, limit_train_batches=2)
    assert same(weights(module), kept[1])
    assert not same(kept[1], kept[3])


def test_best_weights_survive_a_resume(tmp_path):
    values = [3, 1, 2, 2, 2, 2]
    first = Scripted(values)
    settings = {"val": loader(shuffle=False), "limit_train_batches": 2}
    run = fit(first, EarlyStopping("val/loss", patience=9, restore_best=True), max_epochs=2, **settings)
    best = weights(first)
    run.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    second = Scripted(values)
    stopping = EarlyStopping("val/loss", patience=9, restore_best=True)
    fit(second, stopping, max_epochs=5, ckpt=tmp_path / "a.ckpt", **settings)
    assert same(weights(second), best)


def test_patience_is_the_codes_after_a_resume(tmp_path):
    values = [3, 4, 4, 4, 4, 4, 4, 4]
    settings = {"val": loader(shuffle=False), "limit_train_batches": 1}
    fit(Scripted(values), EarlyStopping("val/loss", patience=2), max_epochs=8, **settings).save_checkpoint(
        tmp_path / "a.ckpt"
    )
    again = EarlyStopping("val/loss", patience=5)
    assert fit(Scripted(values), again, max_epochs=8, ckpt=tmp_path / "a.ckpt", **settings).current_epoch == 6
    assert again.patience == 5


def test_a_run_that_it_has_stopped_stays_stopped(tmp_path):
    values = [3, 4, 4, 4, 4, 4, 4, 4]
    settings = {"val": loader(shuffle=False), "limit_train_batches": 1, "max_epochs": 8}
    first = Scripted(values)
    run = fit(first, EarlyStopping("val/loss", patience=2), **settings)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again, resumed = Scripted(values), {"ckpt": tmp_path / "a.ckpt", **settings}
    assert fit(again, EarlyStopping("val/loss", patience=2), **resumed).global_step == run.global_step == 3
    assert same(weights(again), weights(first))
    # neither min_epochs nor another patience is forgotten
    assert fit(Scripted(values), EarlyStopping("val/loss", patience=2), min_epochs=5, **resumed).global_step == 5
    assert fit(Scripted(values), EarlyStopping("val/loss", patience=3), **resumed).global_step == 4


def test_used_again_it_starts_afresh():
    stopping = EarlyStopping("val/loss", patience=2)
    assert epochs([1, 2, 3, 4], stopping) == 3
    assert epochs([9, 8, 7, 6], stopping) == 4
    assert stopping.stopping_reason.name == "NOT_STOPPED"


def test_without_validation_it_stands_aside():
    with pytest.warns(UserWarning, match="stands aside: no validation runs, so 'val/loss'"):
        fit(Scripted([1]), EarlyStopping("val/loss"), limit_val_batches=0, val=loader(), limit_train_batches=1)


def test_a_misspelt_metric_is_still_an_error():
    with pytest.raises(RuntimeError, match="`val/los` which is not available"):
        fit(Scripted([1]), EarlyStopping("val/los"), val=loader(shuffle=False), limit_train_batches=1)


def test_max_steps_inside_the_first_epoch_is_no_error():
    fit(Scripted([1]), EarlyStopping("val/loss"), val=loader(shuffle=False), max_steps=2)


@pytest.mark.parametrize(
    "options", [{"patience": -1}, {"start_epoch": -1}, {"start_step": -1}, {"min_delta_mode": "percent"}]
)
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        EarlyStopping("val/loss", **options)
