"""Faults of W&B while a run goes on: training reaches its end, rows are kept, none of them twice, in one clear line."""

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from wandb_server import WandbServer

from firstlight.tracking import SafeWandbLogger, read_offline_run
from firstlight.tracking import _safe_wandb_logger as logger_file
from firstlight.tracking._watchdog import wandb_service

from .conftest import Tiny


@pytest.fixture
def server(monkeypatch):
    made = WandbServer()
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


@pytest.fixture
def told(caplog, recwarn):
    """What was said about W&B, in order of loudness: logged lines, then warnings."""
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")

    def lines():
        logged = [r.getMessage() for r in caplog.records if r.getMessage().startswith("W&B")]
        return logged, [str(w.message) for w in recwarn if "W&B" in str(w.message)]

    return lines


class AtStep(Callback):
    """Does something to W&B after a step."""

    def __init__(self, step, fault):
        self.step, self.fault = step, fault

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            self.fault(trainer)


def kill(trainer):
    time.sleep(0.5)  # more than _FLUSH here: what was logged is on disk
    wandb_service().kill()
    wandb_service().wait()
    trainer.logger.experiment.log({"by/hand": 1.0})
    trainer.logger.experiment.config.update({"by": "hand"})
    trainer.logger.experiment.summary["by"] = "hand"


def runs(folder):
    return [read_offline_run(path) for path in sorted((folder / "wandb").glob("*run-2*"))]


# wandb's helper process


def test_when_the_helper_dies_the_rest_is_written_into_a_run_beside(tmp_path, fit, told, monkeypatch):
    monkeypatch.setattr(logger_file, "_FLUSH", 0.1)
    logger = SafeWandbLogger(name="first", project="digits", save_dir=tmp_path, tags=["a"])
    kept = logger.experiment  # what a user may hold on to
    logger.log_hyperparams({"lr": 0.1})
    with pytest.warns(UserWarning, match="helper process ended; the rest is logged offline, to upload: wandb sync"):
        trainer = fit(logger, AtStep(7, kill), epochs=2)
    assert trainer.global_step == 12
    kept.log({"kept": 1.0})
    logger.finish()

    before, after = runs(tmp_path)
    assert before.series("train/loss")[0] == [1, 3, 5]
    assert before.series("val/loss")[0] == [5]
    assert after.series("train/loss")[0] == [7, 9, 11]
    assert after.series("val/loss")[0] == [11]
    assert len(after.series("by/hand")[1]) == len(after.series("kept")[1]) == 1
    assert after.config == {"lr": 0.1, "by": "hand", "resumed_from": before.run_id}
    assert after.summary["by"] == "hand"
    assert (after.run_id, after.group) == (f"{before.run_id}-1", before.run_id)
    assert (after.name, after.project, after.tags, after.exit_code) == ("first", "digits", ("a",), 0)
    assert logger.sync_command == f"wandb sync {before.path.parent} {after.path.parent}"
    logged, _ = told()
    assert len(logged) == 2
    assert logged[-1].endswith(logger.sync_command)


def test_a_helper_that_dies_twice_is_not_started_a_third_time(tmp_path, fit, told):
    logger = SafeWandbLogger(save_dir=tmp_path)
    with pytest.warns(UserWarning, match="W&B") as warned:
        trainer = fit(logger, AtStep(2, kill), AtStep(5, kill))
    assert trainer.global_step == 6
    said = [str(w.message) for w in warned if "W&B" in str(w.message)]
    assert len(said) == 2
    assert "is switched off; the run itself goes on" in said[1]
    began = time.monotonic()
    logger.finish()
    assert time.monotonic() - began < 5
    assert len(runs(tmp_path)) == 2
    logged, _ = told()
    assert "did not reach the disk" in logged[-1]
    assert logger.sync_command in logged[-1]


def test_a_helper_that_takes_nothing_is_given_up(tmp_path):
    """Left alone, wandb waits for it for ever, and training with it."""
    logger = SafeWandbLogger(save_dir=tmp_path, finish_timeout=1)
    logger.log_metrics({"a": 0.0}, step=0)
    os.kill(wandb_service().pid, signal.SIGSTOP)

    def log():
        for step in range(1, 3000):
            logger.log_metrics({"a": float(step), "text": "x" * 200}, step=step)

    began = time.monotonic()
    with pytest.warns(UserWarning, match="helper process ended"):
        log()
    assert 1 <= time.monotonic() - began < 30
    logger.finish()
    steps = [step for run in runs(tmp_path) for step in run.series("a")[0]]
    assert len(steps) == len(set(steps))
    resumed_at = runs(tmp_path)[-1].series("a")[0]
    assert resumed_at == list(range(resumed_at[0], 3000))


# The disk


def fill(trainer):
    """Give the helper's files no more room; what it is told from now on does not fit."""
    pid = wandb_service().pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")
def test_a_full_disk_is_told_while_training_goes_on(tmp_path, fit, told, monkeypatch):
    monkeypatch.setattr(logger_file, "_FLUSH", 0.05)
    monkeypatch.setattr(logger_file, "_LOOK", 0.3)
    logger = SafeWandbLogger(save_dir=tmp_path)
    slow = [AtStep(step, lambda trainer: time.sleep(0.1)) for step in range(20, 36)]
    with pytest.warns(UserWarning, match=r"\.wandb does not grow any more \(is its disk full\?\)") as warned:
        trainer = fit(logger, AtStep(2, fill), *slow, epochs=6, log_every_n_steps=1)
    assert trainer.global_step == 36
    assert sum("W&B" in str(w.message) for w in warned) == 1
    logger.finish()
    (run,) = runs(tmp_path)
    steps = run.series("train/loss")[0]
    assert run.truncated
    assert steps == list(range(len(steps)))
    logged, _ = told()
    assert "its last rows did not reach the disk (was it full?); to upload: wandb sync" in logged[-1]


# The network


@pytest.mark.parametrize("fault", ["resets", "refuses", "hangs"])
def test_a_server_that_is_not_well_at_the_start_makes_the_run_offline(fault, tmp_path, fit, server, told):
    server.fault = fault
    logger = SafeWandbLogger(save_dir=tmp_path, version="abc", init_timeout=1, finish_timeout=1)
    fit(logger)
    logger.finish()
    (run,) = runs(tmp_path)
    assert run.series("train/loss")[0] == [1, 3, 5]
    assert (run.run_id, run.exit_code) == ("abc", 0)
    assert server.rows == {}
    logged, warned = told()
    assert warned == []
    assert len(logged) == 2
    assert logged[-1].endswith(f"to upload: {logger.sync_command}")


def test_a_run_that_stays_online_is_whole_on_both_sides(tmp_path, fit, server, told, monkeypatch):
    monkeypatch.setattr(logger_file, "_FLUSH", 0.05)
    monkeypatch.setattr(logger_file, "_LOOK", 0.1)
    logger = SafeWandbLogger(save_dir=tmp_path, version="abc", project="digits")
    fit(logger, *[AtStep(step, lambda trainer: time.sleep(0.15)) for step in range(5)])
    logger.finish()
    assert sent(server) == [1, 3, 5, 5]
    assert server.exit_codes == {"abc": 0}
    assert runs(tmp_path)[0].series("train/loss")[0] == [1, 3, 5]
    assert told() == ([f"W&B: online, {server.url}/me/digits/runs/abc"], [])


def sent(server, run="abc"):
    rows = server.rows.get(run, {})
    return [rows[number]["trainer/global_step"] for number in sorted(rows) if "trainer/global_step" in rows[number]]


def test_a_network_lost_in_the_middle_costs_nothing_that_sync_does_not_bring_back(tmp_path, fit, server, told, capfd):
    def lose(trainer):
        server.fault = "resets"

    logger = SafeWandbLogger(save_dir=tmp_path / "a run", version="abc", finish_timeout=1)
    began = time.monotonic()
    trainer = fit(logger, AtStep(3, lose), epochs=2)
    logger.finish()
    assert time.monotonic() - began < 20
    assert trainer.global_step == 12
    (run,) = runs(tmp_path / "a run")
    assert run.series("train/loss")[0] == [1, 3, 5, 7, 9, 11]
    assert (run.exit_code, run.truncated) == (0, False)
    logged, warned = told()
    assert warned == []
    assert "the upload is not complete (Timed out" in logged[-1]
    assert capfd.readouterr().err.count("wandb:") == 0, "no noise beside the one line"

    server.fault = None
    command = shlex.split(logged[-1].split("to upload the rest: ")[1])
    assert command[:2] == ["wandb", "sync"]
    wandb = Path(sys.executable).with_name("wandb")
    environ = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    done = subprocess.run([str(wandb), *command[1:]], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sent(server) == [1, 3, 5, 5, 7, 9, 11, 11], "each row once: six of training, two of validation"


# Resumed under one id


@pytest.mark.parametrize("first", [6, 9, 10])
def test_a_resumed_run_gets_no_step_twice(first, tmp_path, server, told):
    """Killed after step 9, it goes on from a checkpoint before it, or where it was."""

    def log(steps):
        logger = SafeWandbLogger(save_dir=tmp_path, version="abc")
        logger.log_hyperparams({"lr": 0.1})
        for step in steps:
            logger.log_metrics({"a": float(step)}, step=step)
        logger.finish()
        return logger.version

    log(range(10))
    server.resume(runs(tmp_path)[0])
    version = log(range(first, 14))
    rows = {run: sent(server, run) for run in server.rows if sent(server, run)}
    if first == 10:
        assert rows == {"abc": list(range(14))}
        assert len(told()[0]) == 2
    else:
        assert rows == {"abc": list(range(10)), version: list(range(first, 14))}
        assert version != "abc"
        assert "run abc has rows up to step 9" in told()[0][-1]
        apart = runs(tmp_path)[-1]
        assert (apart.run_id, apart.group, apart.config) == (version, "abc", {"lr": 0.1, "resumed_from": "abc"})
    assert told()[1] == []


# What the tracker cannot take


class OddKey(Tiny):
    def training_step(self, batch, batch_idx):
        self.log("train/\ud800", 1.0)
        return super().training_step(batch, batch_idx)


def test_what_wandb_cannot_take_is_left_out(tmp_path, fit):
    logger = SafeWandbLogger(save_dir=tmp_path)
    with pytest.warns(UserWarning, match="W&B could not take what it was given .* the run goes on"):
        trainer = fit(logger, module=OddKey())
    assert trainer.global_step == 6
    logger.finish()
    assert runs(tmp_path)[0].series("val/loss")[0] == [5], "what it can take is there"
