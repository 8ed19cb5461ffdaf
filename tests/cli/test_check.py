"""``check`` of a project: its configuration, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli.tiny import Project
from lightning.pytorch import LightningModule
from preflight.reports import broken, clean, report

from firstlight.callbacks import LearningRateScheduler
from firstlight.cli import _checking


@pytest.fixture
def asked(monkeypatch):
    """What the preflight was given; it answers with a report made by hand."""
    given = {}

    def instead(module, data, **kwargs):
        given.update(kwargs, module=module, data=data)
        return given.get("answer", clean())

    monkeypatch.setattr(_checking, "run_preflight", instead)
    return given


def test_it_checks_what_fit_would_train_and_leaves_nothing(project: Project, asked, capsys):
    before = set(project.root.rglob("*"))
    cli = project.run("check", "--seed=5", "--budget=7", "--trainer.max_epochs=4", "--wandb={}")
    assert set(project.root.rglob("*")) == before
    assert list(Path.cwd().rglob("runs")) == []
    assert capsys.readouterr().out.startswith("PASSED: ")
    assert isinstance(asked["module"], LightningModule)
    assert asked["data"] is cli.datamodule
    assert (asked["seed"], asked["budget_seconds"]) == (5, 7.0)
    assert asked["trainer"].max_epochs == 4
    assert [type(logger).__name__ for logger in asked["trainer"].loggers] == ["RunCSVLogger", "SafeWandbLogger"]
    assert asked["trainer"].checkpoint_callback.dirpath == str(cli.run_folder / "checkpoints")
    assert [c for c in asked["trainer"].callbacks if isinstance(c, LearningRateScheduler)]
    assert cli.report.exit_code == 0


@pytest.mark.parametrize("option", ["--fail-on", "--fail_on"])
def test_findings_end_it_with_code_1(project: Project, asked, option):
    asked["answer"] = broken()
    with pytest.raises(SystemExit) as ended:
        project.run("check", option, "error", "--format", "json", "--output", "found.json")
    assert ended.value.code == 1
    assert json.loads(Path("found.json").read_text())["exit_code"] == 1


def test_a_comment_in_a_configuration_is_heeded(project: Project, asked):
    asked["answer"] = report(*broken().findings)
    codes = "FL102, FL202, FL301"
    project.write("configs/known.yaml", f"# firstlight: ignore[{codes}] an example\ntrainer: {{max_epochs: 3}}\n")
    cli = project.run("check", "--config", "configs/known.yaml")
    assert [past.finding.code for past in cli.report.ignored] == ["FL102", "FL202", "FL301"]


@pytest.mark.parametrize("word", ["--budgett=3", "--fail_on=fatal", "--budget=-1", "--init_from=x"])
def test_mistakes(refused, word):
    assert word.partition("=")[0].removeprefix("--") in refused("check", word)


def test_the_weights_are_those_that_fit_would_start_from(project: Project, asked):
    project.run("check")
    first = {name: value.clone() for name, value in asked["module"].state_dict().items()}
    project.run("check")
    assert all(torch.equal(value, first[name]) for name, value in asked["module"].state_dict().items())


@pytest.mark.slow
def test_a_real_check_of_a_project(project: Project, capsys):
    with pytest.raises(SystemExit) as ended:
        project.run("check", "--model.optimizer.init_args.lr=1e-12", "--fail-on=info", "--budget=20")
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "ERROR: cannot learn as written" in out
    assert "planned steps 8" in " ".join(out.split())
    assert project.runs == []


def test_a_folder_that_cannot_be_written_is_told_before_a_run_needs_it(project: Project, capsys):
    Path("taken").write_text("")
    project.write("taken", "")
    with pytest.raises(SystemExit) as ended:
        project.run("check", "--checkpoint.dirpath=taken/checkpoints")
    assert ended.value.code == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "FL001 path_unwritable at" in out
    assert "taken is in the way, and no folder" in out
    assert project.runs == []


def test_a_watched_key_with_a_slip_is_told(project: Project, capsys):
    with pytest.raises(SystemExit):
        project.run("check", "--early_stopping.monitor=val/los", "--checkpoint.monitor=val/los")
    out = " ".join(capsys.readouterr().out.split())
    assert "FL004 monitor_missing at EarlyStopping: EarlyStopping watches 'val/los', which is not logged" in out
    assert "RunCheckpoint watches 'val/los'" in out
    assert "watch one of" in out


def test_help_lists_its_options(project: Project, capsys):
    with pytest.raises(SystemExit):
        project.run("check", "--help")
    said = capsys.readouterr().out
    for option in ("--fail_on", "--write_baseline", "--budget", "--format", "--model.optimizer", "--learning_rate"):
        assert option in said
