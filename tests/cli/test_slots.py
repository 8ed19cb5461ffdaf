"""Places: plain keys merge over files and arguments, null switches off, learning-only ones rest elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from cli.tiny import DEFAULT, TwoTerms
from lightning.pytorch.callbacks import ModelCheckpoint

from firstlight import callbacks
from firstlight.cli._slots import SLOTS
from firstlight.schedules import WarmupCosine
from firstlight.tracking import SafeWandbLogger


def slot(cli: Any, kind: type) -> Any:
    found = [c for c in cli.trainer.callbacks if type(c) is kind]
    assert len(found) <= 1
    return found[0] if found else None


def printed(project, capsys, *args: str) -> Any:
    with pytest.raises(SystemExit) as stopped:
        project.run("fit", *args, "--print_config")
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_place_has_its_class():
    assert SLOTS["learning_rate"].target is callbacks.LearningRateScheduler
    assert SLOTS["wandb"].target is SafeWandbLogger
    assert all(s.target for s in SLOTS.values())


@pytest.mark.parametrize("name", SLOTS)
def test_every_place_can_be_switched_off(name, project, capsys):
    assert printed(project, capsys, f"--{name}=null")[name] is None


def test_an_overlay_merges_with_the_default(project, capsys):
    project.write("more.yaml", "early_stopping: {patience: 3}")
    found = printed(project, capsys, "-c", "more.yaml")["early_stopping"]
    assert (found["monitor"], found["patience"]) == ("val/loss", 3)
    found = printed(project, capsys, "-c", "more.yaml", "--early_stopping.patience=2")["early_stopping"]
    assert (found["monitor"], found["patience"]) == ("val/loss", 2)


def test_a_place_comes_back_after_null(project, capsys):
    project.write("off.yaml", "early_stopping: null")
    assert printed(project, capsys, "-c", "off.yaml")["early_stopping"] is None
    found = printed(project, capsys, "-c", "off.yaml", "--early_stopping.monitor=val/loss")["early_stopping"]
    assert (found["monitor"], found["patience"]) == ("val/loss", 3)


def test_a_schedule_keeps_its_other_values(project, capsys):
    project.write("flat.yaml", "learning_rate: {schedule: {init_args: {floor: 0.1}}}")
    found = printed(project, capsys, "-c", "flat.yaml")["learning_rate"]["schedule"]
    assert found["class_path"] == "firstlight.schedules.WarmupCosine"
    assert found["init_args"] == {"warmup": 0.25, "floor": 0.1}


def test_config_files_are_found_from_any_folder(project, capsys, tmp_path):
    project.write("configs/debug/fast.yaml", "trainer: {max_epochs: 1}")
    (tmp_path / "mine.yaml").write_text("trainer: {max_steps: 7}")
    found = printed(project, capsys, "--config=configs/debug/fast.yaml", "-c", "mine.yaml")["trainer"]
    assert (found["max_epochs"], found["max_steps"]) == (1, 7)


def test_a_file_of_comments_changes_nothing(project, capsys):
    project.write("empty.yaml", "# nothing yet\n")
    assert printed(project, capsys, "-c", "empty.yaml") == printed(project, capsys)


def test_print_config_goes_round(project, capsys, tmp_path):
    first = printed(project, capsys, "--trainer.max_epochs=3")
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(first))
    project.write("configs/default.yaml", "")
    assert printed(project, capsys, "-c", "all.yaml") == first


def test_the_callbacks_that_train(project):
    project.write("configs/default.yaml", DEFAULT.replace("run_manifest: null", ""))
    cli = project.run("fit", "--trainer.callbacks+=Timer", "--trainer.fast_dev_run=true")
    schedule = slot(cli, callbacks.LearningRateScheduler).schedule
    assert schedule == WarmupCosine(warmup=0.25)
    assert slot(cli, callbacks.EarlyStopping).patience == 8
    assert slot(cli, callbacks.RunManifest) is not None, "on unless switched off"
    assert slot(cli, callbacks.OverfitOneBatch) is None, "off unless asked for"
    assert "Timer" in [type(c).__name__ for c in cli.trainer.callbacks]


def test_max_norm_holds_from_its_place(project):
    cli = project.run("fit", "--max_norm.limit=0.05")
    assert slot(cli, callbacks.MaxNorm).limit == 0.05
    norms = cli.model.model.weight.detach().norm(dim=1)
    assert norms.max() == pytest.approx(0.05, rel=1e-4), "at the limit, which the first weights are well above"


def test_a_watch_and_a_guard_from_their_places(project):
    places = ("health_monitor", "non_finite_guard", "gradient_noise", "preflight")
    more = ("--non_finite_guard.policy=rollback", "--preflight.fail_on=never")
    cli = project.run("fit", *(f"--{name}={{}}" for name in places), *more)
    kinds = [type(c).__name__ for c in cli.trainer.callbacks]
    assert {"HealthMonitor", "NonFiniteGuard", "GradientNoise", "Preflight"} <= set(kinds)
    assert kinds.index("NonFiniteGuard") < kinds.index(
        "GradientMonitor" if "GradientMonitor" in kinds else "HealthMonitor"
    )
    assert (cli.run_folder / "health.json").is_file()
    assert (cli.run_folder / "preflight.json").is_file()


def test_no_place_at_all(project):
    project.write("configs/default.yaml", DEFAULT.replace("early_stopping: {monitor: val/loss, patience: 8}", ""))
    off = [f"--{name}=null" for name in SLOTS]
    cli = project.run("fit", *off)
    assert not any(isinstance(c, ModelCheckpoint) for c in cli.trainer.callbacks)
    assert not list(project.root.rglob("*.ckpt"))
    assert (cli.run_folder / "metrics.csv").is_file(), "CSV is always written"


def test_a_module_of_the_users_own(project):
    project.module = TwoTerms
    text = DEFAULT[: DEFAULT.index("    model:")] + DEFAULT[DEFAULT.index("    trainer:") :]
    project.write("configs/default.yaml", text)
    cli = project.run("fit", "--model.width=8", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.05")
    assert "train/loss/size" in (cli.run_folder / "metrics.csv").read_text()
    assert cli.trainer.optimizers[0].defaults["lr"] == 0.05
    project.run("test")


def test_help_is_short_and_complete(project, capsys):
    with pytest.raises(SystemExit):
        project.run("fit", "--help")
    page = capsys.readouterr().out
    assert len(page.splitlines()) < 80
    for key in ("--resume", "--early_stopping", "--model.loss", "--data.batch_size", "--trainer.max_epochs"):
        assert f"  {key} " in page
    with pytest.raises(SystemExit):
        project.run("test", "--help")
    page = capsys.readouterr().out
    assert "--ckpt_path" in page
    assert "--early_stopping" not in page, "a place that learns has no effect on a test"
    with pytest.raises(SystemExit):
        project.run("fit", "--help_all")
    assert len(capsys.readouterr().out.splitlines()) > 500
