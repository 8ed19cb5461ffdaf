"""EarlyStopping in place of Lightning's: its arguments, its checkpoints, and each gap beside what Lightning does."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch.callbacks as theirs
import pytest
import torch
from lightning.pytorch import Callback

from firstlight.callbacks import EarlyStopping
from helpers import Plain, fit, loader, same, weights


class Scripted(Plain):
    """Its metric follows a script, one value a validation."""

    def __init__(self, values: list[float]) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.values, self.checks = values, 0

    def on_validation_epoch_start(self):
        self.value, self.checks = self.values[min(self.checks, len(self.values) - 1)], self.checks + 1

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(float(self.value)))


def train(values: list[float], *callbacks: Callback, **kwargs: Any):
    settings = {"max_epochs": len(values), "val": loader(shuffle=False), "limit_train_batches": 2}
    return fit(Scripted(values), *callbacks, **(settings | kwargs))


def test_positional_arguments_are_lightnings_in_lightnings_order():
    ours, original = (
        list(inspect.signature(cls.__init__).parameters.values()) for cls in (EarlyStopping, theirs.EarlyStopping)
    )
    assert [(p.name, p.default) for p in ours[: len(original)]] == [(p.name, p.default) for p in original]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(original) :])


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("val/loss",), {}),
        (("val/loss", 0.0, 3, False, "max"), {}),
        ((), {"monitor": "val/loss", "min_delta": 0.00, "patience": 3, "verbose": False, "mode": "max"}),
        (("val/loss", 0.2, 1, True, "min", True, True, 2.5, 6.0, False, True), {}),
        (("val/loss",), {"divergence_threshold": 4.5}),
        (("val/loss",), {"check_finite": False, "patience": 1}),
        (("val/lost",), {"strict": False}),
        (("val/loss",), {"check_on_train_epoch_end": True, "patience": 1}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric `val/lost`")
@pytest.mark.parametrize(
    "values", [[5, 4, 4, 3, 5, 5, 5, 5], [3, float("nan"), 2, 2, 2, 2], [1, 2, 3, 4, 5, 6]], ids=str
)
def test_documented_uses_stop_where_lightnings_does(values, arguments, options):
    ours, original = EarlyStopping(*arguments, **options), theirs.EarlyStopping(*arguments, **options)
    assert train(values, ours).current_epoch == train(values, original).current_epoch
    for name in ("wait_count", "stopped_epoch", "stopping_reason"):
        assert getattr(ours, name) == getattr(original, name), name
    torch.testing.assert_close(ours.best_score, original.best_score, equal_nan=True)


def test_patience_counts_checks_as_lightnings_does():
    values = [3, 2, 4, 4, 4, 4, 4, 4]
    for cls in (theirs.EarlyStopping, EarlyStopping):
        run = train(values, cls("val/loss", patience=3), val_check_interval=0.5, max_epochs=8)
        assert (run.current_epoch, run.global_step) == (3, 5), "two checks an epoch of two batches"


@pytest.mark.parametrize(
    ("first", "second"), [(theirs.EarlyStopping, EarlyStopping), (EarlyStopping, theirs.EarlyStopping)]
)
def test_a_run_changes_over_in_either_direction(first, second, tmp_path):
    values = [3, 4, 4, 4, 4, 4, 4, 4]
    train(values, first("val/loss", patience=4), max_epochs=3).save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    assert [state["wait_count"] for key, state in stored.items() if key.startswith("EarlyStopping")] == [2]
    again = second("val/loss", patience=4)
    run = train(values, again, ckpt=tmp_path / "a.ckpt")
    assert run.current_epoch == train(values, theirs.EarlyStopping("val/loss", patience=4)).current_epoch == 5
    assert again.best_score == 3


def test_the_best_weights_go_over_to_lightnings_without_harm(tmp_path):
    values = [3, 4, 4, 4, 4, 4]
    first = EarlyStopping("val/loss", patience=4, restore_best=True)
    train(values, first, max_epochs=2).save_checkpoint(tmp_path / "a.ckpt")
    assert train(values, theirs.EarlyStopping("val/loss", patience=4), ckpt=tmp_path / "a.ckpt").current_epoch == 5


def test_a_decision_inside_the_last_compulsory_epoch_is_not_remembered():
    """Bad at its half, best at its end: the epoch is not over at its half, and min_epochs not reached."""
    values = [3, 2, 2.5, 1, 0.9, 0.8, 0.7, 0.6]
    settings = {"val_check_interval": 0.5, "max_epochs": 4, "min_epochs": 2}
    assert train(values, theirs.EarlyStopping("val/loss", patience=1), **settings).current_epoch == 2
    assert train(values, EarlyStopping("val/loss", patience=1), **settings).current_epoch == 4


def test_min_steps_is_not_latched_either():
    values = [3, 4, 2, 1, 0.9]
    assert train(values, theirs.EarlyStopping("val/loss", patience=1), min_steps=6).current_epoch == 3
    assert train(values, EarlyStopping("val/loss", patience=1), min_steps=6).current_epoch == 5


def test_the_reason_is_logged(caplog):
    with caplog.at_level("INFO"):
        train([3, 4, 4, 4, 4], EarlyStopping("val/loss", patience=2))
    assert "EarlyStopping at epoch 2: Monitored metric val/loss did not improve in the last 2 records" in caplog.text


def test_a_run_that_was_stopped_early_goes_on_when_the_code_asks_for_more(tmp_path):
    values = [3, 4, 4, 4, 4, 4, 4, 4]
    train(values, EarlyStopping("val/loss", patience=2)).save_checkpoint(tmp_path / "a.ckpt")
    for cls, epochs in ((theirs.EarlyStopping, 4), (EarlyStopping, 7)):
        assert train(values, cls("val/loss", patience=6), ckpt=tmp_path / "a.ckpt").current_epoch == epochs


def test_one_returned_by_configure_callbacks_replaces_lightnings_of_the_trainer():
    """Lightning's doing: of a class that is a subclass, whatever the two monitor."""

    class Brings(Scripted):
        def configure_callbacks(self):
            return [ours]

    ours = EarlyStopping("val/loss", patience=2)
    run = fit(Brings([3, 4, 4, 4]), theirs.EarlyStopping("train/loss"), val=loader(shuffle=False), max_epochs=4)
    assert run.early_stopping_callbacks == [ours]


def test_restored_weights_are_those_of_the_best_with_dropout_and_norms_in_training_mode():
    kept: list[dict[str, torch.Tensor]] = []

    class Keep(Callback):
        def on_validation_end(self, trainer, pl_module):
            kept.append(weights(pl_module))

    module = Scripted([3, 1, 2, 2, 2])
    stopping = EarlyStopping("val/loss", patience=2, restore_best=True)
    fit(module, stopping, Keep(), val=loader(shuffle=False), max_epochs=5, val_check_interval=0.5)
    assert same(weights(module), kept[1])
    assert stopping.stopped_epoch == 1
