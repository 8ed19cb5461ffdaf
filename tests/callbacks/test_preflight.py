from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from firstlight.callbacks import LearningRateScheduler, Preflight
from firstlight.callbacks._preflight import _data
from firstlight.callbacks._preflight_of_environment import PreflightOfEnvironment
from firstlight.preflight import PreflightReport
from firstlight.preflight._subject import subject_of
from firstlight.recovery import ExactResume, GracefulStop, NonFiniteGuard
from firstlight.schedules import WarmupCosine
from firstlight.tracking import SafeWandbLogger, read_offline_run
from helpers import Plain, TwoOptimizers, classes_data, fit, loader, same, supervised, trainer, weights


class SoftmaxTwice(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0]).softmax(1), batch[1])


def test_a_faulty_run_ends_before_its_first_step_with_the_diagnosis(tmp_path):
    module = SoftmaxTwice()
    before = weights(module)
    logger = CSVLogger(tmp_path)
    with pytest.raises(RuntimeError, match="Preflight stopped the run: FL302 softmax_twice at the loss"):
        fit(module, Preflight(), data=loader(num_samples=256), logger=logger)
    assert same(before, weights(module))
    folder = Path(logger.log_dir)
    report = PreflightReport.from_json((folder / "preflight.json").read_text())
    assert report.root is not None
    assert report.root.code == "FL302"
    page = (folder / "preflight.html").read_text()
    assert "FL302" in page
    assert "remove the softmax" in page


def test_a_run_that_could_not_save_ends_before_its_first_step_and_not_after_an_epoch(tmp_path):
    (tmp_path / "runs").write_text("")
    module = Plain()
    before = weights(module)

    def run(*callbacks: Any) -> None:
        saves = ModelCheckpoint(tmp_path / "runs" / "checkpoints")
        fit(module, saves, *callbacks, data=loader(num_samples=128), enable_checkpointing=True, max_epochs=1)

    with pytest.raises(RuntimeError, match=r"Preflight stopped the run: FL001 path_unwritable .*in the way"):
        run(Preflight())
    assert same(before, weights(module))
    with pytest.raises(OSError, match="runs"):
        run()
    assert not same(before, weights(module)), "without it an epoch was trained for nothing"


def test_one_that_the_environment_asked_for_never_ends_a_run(capsys, monkeypatch):
    run = fit(SoftmaxTwice(), PreflightOfEnvironment(), data=loader(num_samples=128))
    assert run.global_step == 32
    assert "ERROR: cannot learn as written: FL302 softmax_twice" in capsys.readouterr().out

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr("firstlight.callbacks._preflight.run_preflight", broken)
    with pytest.warns(UserWarning, match="the preflight failed, which says nothing about the run: KeyError: 'a bug"):
        assert fit(Plain(), PreflightOfEnvironment()).global_step > 0


def test_one_that_the_environment_asked_for_leaves_the_question_to_that_of_the_user(capsys):
    fit(Plain(), Preflight(), PreflightOfEnvironment(), data=loader(num_samples=128))
    assert capsys.readouterr().out.count("PASSED: ") == 1


def test_a_sound_run_goes_on_and_has_its_report(tmp_path, capsys):
    callback, logger = Preflight(), CSVLogger(tmp_path)
    run = fit(Plain(), callback, data=loader(num_samples=128), logger=logger)
    assert run.global_step == 32
    assert callback.report is not None
    assert callback.report.root is None
    written = json.loads((Path(logger.log_dir) / "preflight.json").read_text())
    assert written["exit_code"] == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("kind", [ExactResume, GracefulStop, NonFiniteGuard])
def test_callbacks_that_keep_a_run_safe_are_no_obstacle(kind):
    callback = Preflight(fail_on="never")
    fit(Plain(), kind(), callback, data=loader(num_samples=64, workers=1), max_epochs=1, enable_checkpointing=True)
    assert callback.report is not None
    assert callback.report.crashed == {}
    assert callback.report.exit_code == 0


def test_without_a_logger_nothing_is_written(tmp_path):
    fit(Plain(), Preflight(), data=loader(num_samples=128), default_root_dir=tmp_path)
    assert list(tmp_path.rglob("preflight.*")) == []


def scaled_by(factor: float) -> Any:
    x, y = classes_data(352).tensors
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(factor * x[256:], y[256:]), batch_size=32)


@pytest.mark.parametrize(("fail_on", "ends"), [("never", False), ("error", False), ("warning", True)])
def test_a_warning_ends_the_run_where_that_is_wanted(fail_on, ends):
    callback = Preflight(fail_on=fail_on)
    with pytest.raises(RuntimeError, match="FL109 split_shift") if ends else contextlib.nullcontext():
        fit(Plain(), callback, data=loader(num_samples=256), val=scaled_by(4.0), max_epochs=1)
    assert callback.report is not None
    assert callback.report.root is not None
    assert (str(callback.report.root.severity), callback.report.root.code) == ("warning", "FL109")


def test_an_error_is_let_through_where_that_is_wanted():
    callback = Preflight(fail_on="never")
    run = fit(SoftmaxTwice(), callback, data=loader(num_samples=64))
    assert run.global_step == 16
    assert callback.report is not None
    assert callback.report.exit_code == 1


@pytest.mark.slow
def test_what_wandb_shows(tmp_path):
    logger = SafeWandbLogger(save_dir=tmp_path / "run")
    with pytest.raises(RuntimeError, match="FL302"):
        fit(SoftmaxTwice(), Preflight(), data=loader(num_samples=256), logger=logger)
    logger.finish()
    run = read_offline_run(logger.offline_dir)
    assert (run.summary["firstlight/verdict"], run.summary["firstlight/root"]) == ("error", "softmax_twice")
    table = next(row["firstlight/findings"] for row in run.history if "firstlight/findings" in row)
    rows = json.loads((Path(logger.offline_dir) / "files" / table["path"]).read_text())
    assert rows["columns"] == ["code", "name", "severity", "where", "message", "advice", "tried"]
    assert rows["data"][0][:3] == ["FL302", "softmax_twice", "error"]


@pytest.mark.slow
def test_a_sound_run_is_clean_in_wandb(tmp_path):
    logger = SafeWandbLogger(save_dir=tmp_path / "run")
    fit(Plain(), Preflight(), data=loader(num_samples=128), logger=logger, max_epochs=1)
    logger.finish()
    run = read_offline_run(logger.offline_dir)
    assert (run.summary["firstlight/verdict"], run.summary["firstlight/root"]) == ("clean", "")


def test_a_resumed_run_is_not_asked_again(tmp_path, caplog):
    first = fit(SoftmaxTwice(), max_epochs=1)
    first.save_checkpoint(tmp_path / "last.ckpt")
    callback = Preflight()
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(SoftmaxTwice(), callback, max_epochs=2, ckpt=tmp_path / "last.ckpt")
    assert (callback.report, callback.skipped) == (None, "the run was resumed")
    assert "Preflight skipped: the run was resumed" in caplog.text


def test_fast_dev_run_is_not_asked():
    callback = Preflight()
    fit(SoftmaxTwice(), callback, fast_dev_run=True)
    assert callback.report is None
    assert "fast_dev_run" in str(callback.skipped)


def train_set() -> Any:
    return loader(num_samples=40, shuffle=False)


def val_set() -> Any:
    return loader(num_samples=24, shuffle=False)


class OwnLoaders(Plain):
    def train_dataloader(self) -> Any:
        return train_set()

    def val_dataloader(self) -> Any:
        return val_set()


class Data(LightningDataModule):
    setups = 0

    def setup(self, stage: str) -> None:
        self.setups += 1

    def train_dataloader(self) -> Any:
        return train_set()

    def val_dataloader(self) -> Any:
        return val_set()


@pytest.mark.parametrize("given", ["passed", "own", "datamodule", "only to train"])
def test_wherever_the_data_come_from_they_are_found(given):
    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            subject = subject_of(pl_module, _data(trainer), trainer)
            seen.append([sum(len(y) for _, y in batches) for batches in (subject.train, subject.val)])

    seen: list[Any] = []
    data = Data()
    run = trainer(callbacks=[Look(), Preflight(fail_on="never")], max_epochs=1)
    module = OwnLoaders() if given == "own" else Plain()
    run.fit(
        module,
        train_set() if given in ("passed", "only to train") else data if given == "datamodule" else None,
        val_set() if given == "passed" else None,
    )
    assert seen == [[40, 0 if given == "only to train" else 24]]
    assert data.setups == (given == "datamodule")


def test_the_schedule_of_a_callback_takes_part():
    """With a warm-up of four fifths of a long run the rate is still rising when the copy stops."""
    callback = Preflight(fail_on="never")
    schedule = LearningRateScheduler(WarmupCosine(warmup=10))
    run = fit(Plain(lr=0.1), schedule, callback, data=loader(num_samples=256), max_epochs=20)
    assert callback.report is not None
    rates = callback.report.readings["update/rates"]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) / 10 for step in range(10)])
    assert schedule.state_dict()["total"] == run.global_step == 640, "and the run's own schedule goes on as planned"


@pytest.mark.parametrize("make", [supervised, TwoOptimizers])
def test_the_optimizers_of_the_run_are_as_they_were(make):
    class Keep(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            kept.append(
                (
                    [(id(o), copy.deepcopy(o.state_dict()), "step" in vars(o)) for o in trainer.optimizers],
                    [id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]],
                    {key: id(value) for key, value in vars(pl_module).items()},
                    [id(c) for c in trainer.callbacks],
                    trainer.global_step,
                    trainer.should_stop,
                )
            )

    kept: list[Any] = []
    fit(make(), Keep(), Preflight(fail_on="never"), Keep(), data=loader(num_samples=64), max_epochs=1)
    assert len(kept) == 2
    assert kept[0] == kept[1]


@pytest.mark.parametrize(("argument", "value"), [("budget_seconds", 0), ("fail_on", "info")])
def test_an_argument_out_of_range_is_told(argument, value):
    with pytest.raises(ValueError, match=argument):
        Preflight(**{argument: value})
