import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint

from firstlight.tracking import SafeWandbLogger, read_offline_run
from firstlight.tracking._watchdog import wandb_service

from .conftest import Tiny

KEY = "a1b2c3d4e5" * 4  # well-formed, and of no account
SECRETS = ("sk-topsecret", "hunter2", "glpat-12345")


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.fixture
def messages(caplog):
    """What Lightning's logging said about W&B."""
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    return lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith("W&B")]


# Without a key


def test_a_fit_without_a_key_is_written_offline_and_can_be_read_back(tmp_path, fit, messages, no_wandb_account):
    logger = SafeWandbLogger(name="first", project="digits", save_dir=tmp_path / "run", tags=["a"], notes="n")
    trainer = fit(logger, epochs=2)
    logger.log_hyperparams({"lr": 0.1, "model": {"width": 8}})
    assert trainer.log_dir == str(tmp_path / "run")
    logger.finish()

    run = read_offline_run(logger.offline_dir)
    assert (run.name, run.project, run.tags, run.notes, run.exit_code) == ("first", "digits", ("a",), "n", 0)
    assert run.run_id == logger.version
    assert run.config == {"lr": 0.1, "model": {"width": 8}}
    assert run.series("train/loss")[0] == [1, 3, 5, 7, 9, 11]
    assert run.series("val/loss")[0] == [5, 11]
    assert run.series("val/loss")[1][-1] == pytest.approx(trainer.callback_metrics["val/loss"].item())
    assert run.metrics["*"]["step_metric"] == "trainer/global_step"
    assert not run.truncated

    assert logger.offline_dir.parent == tmp_path / "run" / "wandb"
    assert logger.sync_command == f"wandb sync {logger.offline_dir}"
    started, ended = messages()
    assert "offline (no API key" in started
    assert ended.endswith(logger.sync_command)
    assert not list(no_wandb_account.glob(".local/**/staging/*"))


def test_the_sync_command_survives_a_folder_with_spaces(tmp_path):
    logger = SafeWandbLogger(save_dir=tmp_path / "my run")
    assert (logger.offline_dir, logger.sync_command, logger.version) == (None, None, None)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.finish()
    assert logger.sync_command == f"wandb sync '{logger.offline_dir}'"


def test_tables_and_images_are_written_inside_the_run_folder(tmp_path, no_wandb_account):
    logger = SafeWandbLogger(save_dir=tmp_path)
    logger.log_table("val/predictions", columns=["target", "right"], data=[["3", True]], step=4)
    logger.log_image("val/picture", [np.zeros((8, 8, 3), dtype=np.uint8)], step=4)
    with pytest.raises(ValueError, match="Expected 1 items"):  # a mistake of the caller is told, not swallowed
        logger.log_image("val/picture", [np.zeros((8, 8, 3), dtype=np.uint8)], caption=[])
    logger.finish()
    run = read_offline_run(logger.offline_dir)
    table = next(row["val/predictions"] for row in run.history if "val/predictions" in row)
    assert (table["_type"], table["nrows"], table["ncols"]) == ("table-file", 1, 2)
    assert (logger.offline_dir / "files" / table["path"]).is_file()
    assert any(path.startswith("media/images/val/picture") for path in run.files)
    (staged,) = (path for artifact in run.artifacts for path in artifact["files"].values())
    assert staged.startswith(str(tmp_path))
    assert not list(no_wandb_account.glob(".local/**/staging/*"))


@pytest.mark.slow
def test_no_question_is_asked_on_a_terminal(tmp_path):
    """What wandb itself does here is to prompt and wait for ever."""
    pty = pytest.importorskip("pty")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from firstlight.tracking import SafeWandbLogger\n"
        "logger = SafeWandbLogger(save_dir=sys.argv[1])\n"
        "assert 'wandb' not in sys.modules\n"
        "assert sys.stdin.isatty() and sys.stdout.isatty()\n"
        "logger.log_metrics({'a': 1.0}, step=0)\n"
    )
    outside, inside = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, env=environ, close_fds=True)
    os.close(inside)
    output = b""
    with contextlib.suppress(OSError):  # how a pty says that its other end is closed
        while piece := os.read(outside, 4096):
            output += piece
    os.close(outside)
    assert process.wait(60) == 0, output.decode()
    assert b"(1)" not in output
    assert b"Enter your choice" not in output
    said = [line for line in output.decode().splitlines() if "W&B" in line or "wandb:" in line]
    (run_dir,) = (tmp_path / "wandb").glob("offline-run-*")
    assert len(said) == 2
    assert said[1].endswith(f"wandb sync {run_dir}")
    assert read_offline_run(run_dir).exit_code == 0


# The mode


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_an_explicit_mode_wins_over_a_key(mode, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = SafeWandbLogger(save_dir=tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.finish()
    assert read_offline_run(logger.offline_dir).series("a") == ([0], [1.0])
    assert KEY.encode() not in all_bytes(tmp_path)


def test_disabled_writes_nothing(tmp_path, fit, messages, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = SafeWandbLogger(save_dir=tmp_path / "run")
    fit(logger)
    logger.log_table("t", columns=["a"], data=[[1]])
    logger.finish()
    assert logger.offline_dir is None
    assert logger.sync_command is None
    assert [p for p in (tmp_path / "run").rglob("*") if p.is_file()] == []
    assert messages() == ["W&B: nothing is logged (WANDB_MODE=disabled)"]


@pytest.mark.parametrize("mode", ["", "online", "shared", "run"])
def test_online_without_a_key_is_offline_and_says_why(mode, tmp_path, monkeypatch, messages):
    monkeypatch.setenv("WANDB_MODE", mode)
    logger = SafeWandbLogger(save_dir=tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.finish()
    assert read_offline_run(logger.offline_dir).series("a") == ([0], [1.0])
    assert "no API key" in messages()[0]


def test_a_typo_in_the_mode_is_an_error_at_once(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offlin")
    with pytest.raises(ValueError, match=r"WANDB_MODE must be one of online, offline, .* did you mean 'offline'"):
        SafeWandbLogger()


def test_wrong_timeouts_are_refused():
    with pytest.raises(ValueError, match="init_timeout must be above zero; got 0"):
        SafeWandbLogger(init_timeout=0)
    with pytest.raises(ValueError, match="finish_timeout must be above zero; got -1"):
        SafeWandbLogger(finish_timeout=-1)


def test_without_wandb_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python itself uses to say "not there"
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'firstlight\[wandb\]'"):
        SafeWandbLogger()


# A key, and a server that does not answer


def test_a_refused_connection_falls_back_at_once(tmp_path, monkeypatch, messages):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    logger = SafeWandbLogger(save_dir=tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    assert time.monotonic() - began < 10
    logger.finish()
    assert read_offline_run(logger.offline_dir).series("a") == ([0], [1.0])
    assert f"127.0.0.1:{port} cannot be reached: Connection refused" in messages()[0]
    assert KEY.encode() not in all_bytes(tmp_path)
    assert not any(KEY in message for message in messages())


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(tmp_path):
    """In a process of its own, since wandb's telemetry must not hold up its end either."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, sys, time\n"
        "atexit.register(lambda: print(time.monotonic() - ended))\n"  # the first registered runs last
        "from firstlight.tracking import SafeWandbLogger\n"
        "began = time.monotonic()\n"
        "SafeWandbLogger(save_dir=sys.argv[1], init_timeout=1).log_metrics({'a': 1.0}, step=0)\n"
        "ended = time.monotonic()\n"
        "print(ended - began)\n"
    )
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:  # takes connections and says nothing
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "WANDB_API_KEY": KEY,
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
        }
        command = [sys.executable, str(script), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "wandb").glob("*run-*")
    assert read_offline_run(run_dir).series("a") == ([0], [1.0])
    assert f"wandb sync {run_dir}" in done.stderr
    assert KEY not in done.stderr
    starting, ending = map(float, done.stdout.split()[-2:])
    assert starting < 20
    assert ending < 5
    assert KEY.encode() not in all_bytes(tmp_path)


@pytest.mark.parametrize("key", ["short", "not a key"])
def test_a_malformed_key_falls_back(key, tmp_path, monkeypatch, messages):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        logger = SafeWandbLogger(save_dir=tmp_path)
        logger.log_metrics({"a": 1.0}, step=0)
        logger.finish()
    assert logger.offline_dir is not None
    assert "API key" in messages()[0]
    assert key not in messages()[0].replace("API key", "")


# Failure during the run


def test_a_run_folder_that_cannot_be_written_does_not_stop_the_fit(tmp_path, fit):
    (tmp_path / "file").write_text("in the way")
    logger = SafeWandbLogger(save_dir=tmp_path / "file" / "run")
    with pytest.warns(UserWarning, match="W&B failed"):
        trainer = fit(logger)
    logger.finish()
    assert trainer.global_step == 6


def test_a_helper_that_hangs_at_the_end_is_given_up(tmp_path, messages):
    logger = SafeWandbLogger(save_dir=tmp_path, finish_timeout=0.5)
    logger.log_metrics({"a": 1.0}, step=0)
    os.kill(wandb_service().pid, signal.SIGSTOP)
    began = time.monotonic()
    logger.finish()
    assert 0.5 <= time.monotonic() - began < 15
    assert logger.sync_command in messages()[-1]


def test_a_failed_fit_is_recorded_as_failed(tmp_path, fit):
    logger = SafeWandbLogger(save_dir=tmp_path / "run")
    with pytest.raises(RuntimeError, match="the training itself failed"):
        fit(logger, module=Tiny(fail_at=3))
    logger.finish()
    assert read_offline_run(logger.offline_dir).exit_code == 1


# Secrets


def test_secrets_are_nowhere_in_the_run_folder(tmp_path, fit, monkeypatch, no_wandb_account):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key=sk-topsecret", "--password", "hunter2", "--lr", "0.5"])
    logger = SafeWandbLogger(save_dir=tmp_path / "run")
    fit(logger)
    logger.log_hyperparams({"hub": [{"api_key": "sk-topsecret"}], "url": "https://me:hunter2@host/x", "width": 8})
    logger.log_hyperparams({"gitlab_token": "glpat-12345"})
    logger.finish()
    assert sys.argv[1] == "--api-key=sk-topsecret"  # masked for wandb only
    written = all_bytes(tmp_path / "run") + all_bytes(no_wandb_account)
    assert b"--lr" in written
    for secret in (*SECRETS, KEY):
        assert secret.encode() not in written
    run = read_offline_run(logger.offline_dir)
    assert run.config["hub"] == [{"api_key": "***"}]
    assert run.config["width"] == 8


def test_the_environment_can_be_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--marker-of-argv"])
    logger = SafeWandbLogger(save_dir=tmp_path, share_environment=False)
    logger.log_metrics({"a": 1.0})
    logger.finish()
    assert b"--marker-of-argv" not in all_bytes(tmp_path)
    assert not (logger.offline_dir / "files" / "requirements.txt").exists()


def test_the_console_is_recorded_only_when_asked(tmp_path):
    for name, wanted in (("off", False), ("on", True)):
        logger = SafeWandbLogger(save_dir=tmp_path / name, capture_console=wanted)
        logger.log_metrics({"a": 1.0})
        print("said on the console")
        time.sleep(1.0 if wanted else 0.0)  # wandb reads the console in a thread of its own
        logger.finish()
        assert (b"said on the console" in all_bytes(tmp_path / name)) is wanted


# Runs, one after the other and side by side


def test_two_loggers_make_two_runs(tmp_path):
    first, second = SafeWandbLogger(save_dir=tmp_path / "1"), SafeWandbLogger(save_dir=tmp_path / "2")
    first.log_metrics({"a": 1.0}, step=0)
    second.log_metrics({"b": 1.0}, step=0)
    second.finish()
    assert read_offline_run(first.offline_dir).series("a") == ([0], [1.0])
    assert read_offline_run(second.offline_dir).series("a") == ([], [])
    assert read_offline_run(second.offline_dir).series("b") == ([0], [1.0])


def test_a_run_in_progress_is_used_and_left_open(tmp_path):
    import wandb

    run = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True, console="off"))
    logger = SafeWandbLogger(save_dir=tmp_path / "other")
    logger.log_metrics({"a": 1.0}, step=3)
    logger.finish()
    assert wandb.run is run
    run.finish()
    wandb.teardown()
    assert read_offline_run(logger.offline_dir).series("a") == ([3], [1.0])
    assert logger.offline_dir.parent == tmp_path / "wandb"


def test_fit_and_test_of_one_logger_are_one_run(tmp_path, fit):
    logger = SafeWandbLogger(save_dir=tmp_path / "run")
    trainer = fit(logger)
    logger.log_metrics({"test/accuracy": 0.5}, step=trainer.global_step)
    logger.finish()
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1
    assert read_offline_run(logger.offline_dir).series("test/accuracy") == ([6], [0.5])


def test_a_resumed_run_gets_an_id_of_its_own(tmp_path):
    for attempt in range(3):
        logger = SafeWandbLogger(save_dir=tmp_path, version="abc")
        logger.log_metrics({"a": float(attempt)}, step=attempt)
        logger.finish()
    runs = [read_offline_run(path) for path in (tmp_path / "wandb").glob("offline-run-*")]
    runs.sort(key=lambda run: run.run_id)
    assert [run.run_id for run in runs] == ["abc", "abc-1", "abc-2"]
    assert [(run.group, run.job_type) for run in runs[1:]] == [("abc", "resume-1"), ("abc", "resume-2")]
    assert runs[2].config == {"resumed_from": "abc"}


def test_checkpoints_are_not_copied_offline(tmp_path, fit, messages, no_wandb_account):
    logger = SafeWandbLogger(save_dir=tmp_path / "run", log_model="all")
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_top_k=-1, every_n_train_steps=2)
    fit(logger, checkpoints, enable_checkpointing=True)
    logger.finish()
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 3
    assert read_offline_run(logger.offline_dir).artifacts == ()
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix == ".ckpt"]
    assert sum("log_model has no effect offline" in message for message in messages()) == 1


def test_a_pickled_logger_starts_a_run_of_its_own(tmp_path):
    logger = SafeWandbLogger(save_dir=tmp_path / "run", version="abc")
    copy = pickle.loads(pickle.dumps(logger))  # noqa: S301
    assert not (tmp_path / "run").exists()
    copy.log_metrics({"a": 2.0})
    again = pickle.loads(pickle.dumps(copy))  # noqa: S301
    copy.finish()
    again.finish()  # has nothing to close
    assert copy.version == "abc"
    assert read_offline_run(copy.offline_dir).series("a") == ([0], [2.0])


def test_after_finish_calls_do_nothing(tmp_path):
    logger = SafeWandbLogger(save_dir=tmp_path)
    logger.log_metrics({"a": 1.0})
    logger.finish()
    logger.finish()
    logger.log_metrics({"b": 1.0})
    logger.experiment.config["x"] = 1
    logger.experiment.log({"b": 1.0})
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    assert read_offline_run(logger.offline_dir).series("b") == ([], [])


def test_the_experiment_passes_for_a_run(tmp_path):
    import wandb

    logger = SafeWandbLogger(save_dir=tmp_path)
    run = logger.experiment
    assert isinstance(run, wandb.Run)
    assert run.id == logger.version
    run.config["width"] = 8
    assert run.config["width"] == 8
    assert "width" in run.config
    run.summary["best"] = 0.5
    with pytest.raises(TypeError):
        run.log()  # a mistake of the caller
    logger.finish()
    back = read_offline_run(logger.offline_dir)
    assert back.config == {"width": 8}
    assert back.summary["best"] == 0.5


def test_a_config_file_reads_it_with_plain_nested_keys(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SafeWandbLogger, "wandb")
    text = f"wandb: {{project: digits, save_dir: {tmp_path}, log_model: all, tags: [a, b], init_timeout: 3}}"
    logger = parser.instantiate(parser.parse_string(text)).wandb
    assert logger.name == "digits"
    assert logger.save_dir == str(tmp_path)
    with pytest.raises(ArgumentError, match="projct"):
        parser.parse_string("wandb: {projct: digits}")


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from lightning.pytorch import Trainer\n"
        "from lightning.pytorch.demos.boring_classes import BoringModel\n"
        "from firstlight.tracking import SafeWandbLogger\n"
        "class Model(BoringModel):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        loss = super().training_step(batch, batch_idx)['loss']\n"
        "        self.log('train/loss', loss)\n"
        "        self.logger.experiment.log({'rank': self.global_rank})\n"
        "        return loss\n"
        "logger = SafeWandbLogger(save_dir=sys.argv[1])\n"
        "Trainer(accelerator='cpu', devices=2, strategy='ddp', max_steps=4, log_every_n_steps=1, logger=logger,\n"
        "        limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False).fit(Model())\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "wandb").glob("*run-*")
    run = read_offline_run(run_dir)
    assert len(run.series("train/loss")[1]) == 4
    assert run.series("rank")[1] == [0] * 4
    assert done.stderr.count("wandb sync") == 1
    assert torch.isfinite(torch.tensor(run.series("train/loss")[1])).all()
