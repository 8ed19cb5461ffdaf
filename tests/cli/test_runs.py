"""One folder a run: what lies in it, how evaluation finds it, how a run goes on."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from firstlight.modules import SupervisedModule
from firstlight.tracking import read_offline_run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def steps(run: Path, key: str = "train/loss") -> list[int]:
    return [int(row["step"]) for row in rows(run / "metrics.csv") if row.get(key)]


def test_what_a_run_leaves(project, capsys):
    cli = project.run("fit", "--run_manifest={}")
    (run,) = project.runs
    assert cli.run_folder == run
    assert run.parent == project.root / "runs" / "tiny"
    assert re.fullmatch(r"\d{8}-\d{6}-\d{3}-[0-9a-f]{4}", run.name)
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "metrics.csv", "manifest.json", "checkpoints", "run.png"}
    assert not (run / "hparams.yaml").exists()
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"epoch=1-step=8.ckpt", "last.ckpt"}
    assert cli.trainer.default_root_dir == str(run)
    assert steps(run) == [1, 3, 5, 7]
    said = capsys.readouterr().out
    assert f"run folder:      {run.relative_to(Path.cwd())}" in said
    assert re.search(r"best checkpoint: .*epoch=1-step=8.ckpt  \(val/loss 0\.\d+\)", said)
    assert "run.png" in said
    assert not list(Path.cwd().glob("lightning_logs"))


def test_a_second_run_has_its_own_folder(project):
    project.run("fit")
    project.run("fit")
    assert len(project.runs) == 2
    assert project.runs == sorted(project.runs, key=lambda p: p.stat().st_mtime), "names sort by time"


def test_the_saved_configuration_makes_the_same_run(project):
    first = project.run("fit", "--trainer.max_epochs=1", "--data.num_samples=16")
    saved = project.runs[0] / "config.yaml"
    assert yaml.safe_load(saved.read_text())["data"]["num_samples"] == 16
    project.write("configs/default.yaml", "")
    again = project.run("fit", "-c", str(saved))
    assert project.saved(again.run_folder) == project.saved(first.run_folder)
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    project.run("test", "-c", str(saved))


def test_secrets_are_not_written(project):
    project.run("fit", "--data.api_key=sk-very-private")
    for path in project.runs[0].rglob("*"):
        if path.is_file():
            assert b"sk-very-private" not in path.read_bytes(), path
    assert project.saved()["data"]["api_key"] == "***"
    assert project.run("test").datamodule.api_key is None, "the mask is not taken for a key"
    assert project.run("test", "--data.api_key=sk-again").datamodule.api_key == "sk-again"


def test_fast_dev_run_leaves_nothing(project):
    cli = project.run("fit", "--trainer.fast_dev_run=true")
    assert not project.runs
    assert not cli.run_folder.exists()
    assert not (project.root / "runs").exists()


def test_runs_dir_and_name(project, tmp_path):
    project.run("fit", f"--runs_dir={tmp_path / 'elsewhere'}", "--run_name=other")
    assert len(list((tmp_path / "elsewhere" / "other").iterdir())) == 1
    assert not (project.root / "runs").exists()


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_evaluation_reads_the_best_of_the_newest_run(project, subcommand, capsys):
    project.run("fit")
    trained = project.run(
        "fit",
        "--model.model=torch.nn.Linear",
        "--model.model.in_features=8",
        "--model.model.out_features=4",
        "--model.model.bias=false",
    )
    best = trained.trainer.checkpoint_callback
    capsys.readouterr()
    cli = project.run(subcommand)
    said = capsys.readouterr().out
    assert f"{subcommand}: the best checkpoint of the newest run, " in said
    assert Path(best.best_model_path).name in said
    assert cli.model.model.bias is None, "the model that was trained, not the one in default.yaml"
    assert len(project.runs) == 2, "no new run"
    assert cli.run_folder == project.runs[-1] / subcommand
    stage = "val" if subcommand == "validate" else "test"
    (row,) = rows(cli.run_folder / "metrics.csv")
    assert float(row[f"{stage}/loss"]) == pytest.approx(float(best.best_model_score), rel=1e-5)


def test_the_best_is_not_the_newest(project):
    project.run("fit", "--checkpoint.mode=max", "--trainer.max_epochs=3")  # the loss falls: the first is the highest
    names = sorted(p.name for p in (project.runs[0] / "checkpoints").iterdir())
    assert names == ["epoch=0-step=4.ckpt", "last.ckpt"]
    assert project.run("test")._evaluates.step == 4
    assert project.run("test", "--ckpt_path=last")._evaluates.step == 12


def test_a_run_that_was_moved_still_knows_its_best(project):
    project.run("fit", "--checkpoint.mode=max")
    (run,) = project.runs
    run.rename(run.with_name("20991231-000000-000-ffff"))
    cli = project.run("test")
    assert cli._evaluates.step == 4
    assert cli.run_folder == project.runs[-1] / "test"


def test_a_checkpoint_outside_of_runs(project, tmp_path):
    project.run("fit", "--model.loss.init_args.label_smoothing=0.3")
    apart = tmp_path / "apart.ckpt"
    apart.write_bytes((project.runs[0] / "checkpoints" / "last.ckpt").read_bytes())
    cli = project.run("test", "--ckpt_path=apart.ckpt")
    assert cli.model.loss.label_smoothing == 0.3, "as the checkpoint itself says"
    assert cli.run_folder.name == "test"


def test_arguments_win_over_what_was_trained(project):
    project.run("fit", "--data.batch_size=4")
    assert project.run("test").datamodule.batch_size == 4
    assert project.run("test", "--data.batch_size=16").datamodule.batch_size == 16


def test_predict(project, capsys):
    cli = project.run("fit")
    cli = project.run("predict")
    assert "32 predictions: " in capsys.readouterr().out
    found = rows(cli.run_folder / "predictions.csv")
    assert list(found[0]) == ["index", "class", "confidence"]
    assert [int(row["index"]) for row in found] == list(range(32))
    cli.datamodule.setup("predict")
    with torch.no_grad():
        inputs, _ = cli.datamodule.data[:]
        probability = cli.model.eval()(inputs).softmax(1)
    assert [int(row["class"]) for row in found] == probability.argmax(1).tolist()
    assert [float(r["confidence"]) for r in found] == pytest.approx(probability.amax(1).tolist(), abs=1e-6)


def test_a_checkpoint_loads_in_lightning_alone(project):
    cli = project.run("fit")
    loaded = SupervisedModule.load_from_checkpoint(project.runs[0] / "checkpoints" / "last.ckpt")
    assert loaded.loss.label_smoothing == 0.1
    for key, value in cli.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])


def test_resume_goes_on_in_the_same_folder(project, capsys):
    project.run("fit")
    before = rows(project.runs[0] / "metrics.csv")
    capsys.readouterr()
    cli = project.run("fit", "--resume=last", "--trainer.max_epochs=4")
    (run,) = project.runs
    assert cli.trainer.global_step == 16
    assert steps(run) == [1, 3, 5, 7, 9, 11, 13, 15]
    after = rows(run / "metrics.csv")
    assert [r["train/loss"] for r in after[: len(before)]] == [r["train/loss"] for r in before]
    assert project.saved()["trainer"]["max_epochs"] == 4
    assert yaml.safe_load((run / "config.1.yaml").read_text())["trainer"]["max_epochs"] == 2
    said = capsys.readouterr().out
    assert "in the same run folder" in said
    assert "changed since: trainer.max_epochs: 2 -> 4" in said


def test_resume_keeps_columns_that_are_new_or_gone(project):
    project.run("fit")
    project.run(
        "fit",
        "--resume=last",
        "--trainer.max_epochs=3",
        "--learning_rate=null",
        "--model.penalties+=firstlight.regularizers.L2Penalty",
        "--model.penalties.weight=0.001",
    )
    found = rows(project.runs[0] / "metrics.csv")
    assert found[0]["lr/decay"]
    assert not found[0]["train/penalty/l2"]
    assert found[-2]["train/penalty/l2"]
    assert not found[-2]["lr/decay"]


def test_resume_auto_starts_anew_where_there_is_nothing(project, capsys):
    project.run("fit", "--resume=auto")
    assert "starting a new run" in capsys.readouterr().out
    project.run("fit", "--resume=auto", "--trainer.max_epochs=3")
    assert len(project.runs) == 1


def test_resume_takes_the_highest_step_not_the_newest_file(project, capsys):
    project.run("fit", "--checkpoint.save_top_k=-1")
    folder = project.runs[0] / "checkpoints"
    (folder / "last.ckpt").unlink()
    later = time.time() + 100
    os.utime(folder / "epoch=0-step=4.ckpt", (later, later))
    assert project.run("fit", "--resume=last", "--trainer.max_epochs=3")._resumes.step == 8


def test_resume_auto_passes_over_what_is_damaged_and_says_so(project, capsys):
    project.run("fit", "--checkpoint.save_top_k=-1")
    folder = project.runs[0] / "checkpoints"
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    newest = folder / "epoch=1-step=8.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    capsys.readouterr()
    cli = project.run("fit", "--resume=auto", "--trainer.max_epochs=3")
    assert cli._resumes.step == 4
    assert cli.trainer.global_step == 12
    said = capsys.readouterr().out
    assert "last.ckpt: it is cut off after" in said
    assert "epoch=1-step=8.ckpt: its SHA-256 is not the one that it was sealed with" in said
    assert re.search(r"resume: \S+epoch=0-step=4.ckpt \(step 4\), in the same run folder", said)
    assert (folder / "last.ckpt.refused").is_file()
    assert not (folder / "last-v1.ckpt").exists()
    assert project.run("fit", "--resume=last", "--trainer.max_epochs=4")._resumes.step == 12


@pytest.mark.parametrize("name", ["last", "path"])
def test_resume_refuses_a_damaged_checkpoint_and_names_a_good_one(project, refused, name):
    project.run("fit", "--checkpoint.save_top_k=-1")
    last = project.runs[0] / "checkpoints" / "last.ckpt"
    last.write_bytes(b"")
    said = refused("fit", f"--resume={last if name == 'path' else name}", "--trainer.max_epochs=3")
    assert "last.ckpt is refused as a checkpoint\n  it is empty\n  the newest good one is " in said
    assert "epoch=1-step=8.ckpt (step 8)" in said


def test_resume_auto_does_not_start_from_scratch_beside_damaged_checkpoints(project, refused):
    project.run("fit")
    for path in project.runs[0].glob("checkpoints/*"):
        path.write_bytes(bytes(1000))
    said = refused("fit", "--resume=auto")
    assert "no checkpoint under project/runs/tiny can be resumed" in said
    assert said.count("it is zeros") == 2
    assert "to start anew, leave out --resume" in said


def test_resume_needs_more_than_weights(project, refused):
    project.run("fit", "--checkpoint.save_weights_only=true")
    last = project.runs[0] / "checkpoints" / "last.ckpt"
    assert "holds weights alone" in refused("fit", f"--resume={last}")
    assert "it holds weights alone, from which no run can go on" in refused("fit", "--resume=auto")
    project.run("test")


def test_a_damaged_checkpoint_is_not_evaluated(project, refused):
    project.run("fit")
    best = next(project.runs[0].glob("checkpoints/epoch*"))
    best.write_bytes(best.read_bytes()[:-100])
    said = refused("test", f"--ckpt_path={best}")
    assert "is refused as a checkpoint\n  it is cut off after" in said


def test_a_folder_that_cannot_be_written_ends_the_run_before_its_first_step(project, refused, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(SystemExit) as stopped:
        project.run("fit", f"--checkpoint.dirpath={in_the_way}")
    assert stopped.value.code == 74


def test_the_configuration_wins_over_the_checkpoint(project):
    project.run("fit")
    cli = project.run("fit", "--resume=last", "--trainer.max_epochs=3", "--model.loss.init_args.label_smoothing=0.2")
    assert cli.model.loss.label_smoothing == 0.2


def test_init_from_takes_weights_alone(project):
    first = project.run("fit")
    last = project.runs[0] / "checkpoints" / "last.ckpt"
    cli = project.run(
        "fit",
        f"--init_from={last}",
        "--weight_initialization={}",
        "--model.optimizer.lr=0",
        "--model.optimizer.weight_decay=0",
        "--trainer.max_epochs=1",
    )
    assert len(project.runs) == 2
    assert cli.trainer.global_step == 4, "counted from zero"
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, cli.model.state_dict()[key]), "initialization stays away from given weights"


def test_a_finished_run_can_be_resumed(project):
    project.run("fit")
    assert project.run("fit", "--resume=auto").trainer.global_step == 8


def test_arguments_as_a_mapping(project):
    cli = project.run(args={"subcommand": "fit", "fit": {"trainer": {"max_epochs": 1}, "early_stopping": None}})
    assert cli.trainer.global_step == 4
    assert project.saved()["early_stopping"] is None
    assert project.saved()["checkpoint"]["monitor"] == "val/loss", "over the default file"


def test_threads_of_the_cpu(project):
    before = torch.get_num_threads()
    try:
        project.run("fit", "--cpu_threads=2")
        assert torch.get_num_threads() == 2
        assert project.saved()["cpu_threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_without_running(project):
    cli = project.run(run=False)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.global_step == 8
    assert len(project.runs) == 1


def test_wandb_shares_the_folder_and_gets_the_configuration(project):
    pytest.importorskip("wandb")
    cli = project.run("fit", "--wandb.project=tiny", "--data.api_key=sk-very-private")
    (run,) = project.runs
    logger = cli.trainer.loggers[1]
    logger.finish()
    assert logger.offline_dir.parent == run / "wandb"
    logged = read_offline_run(logger.offline_dir)
    assert logged.config["model"]["optimizer"]["init_args"]["lr"] == 0.1
    assert logged.config["data"]["api_key"] == "***"
    assert "train/loss" in {key for row in logged.history for key in row}


def test_a_run_that_goes_on_is_the_same_run_in_wandb(project):
    """Online the id alone does it; offline, two runs of one id would collide, so the second is numbered."""
    pytest.importorskip("wandb")
    cli = project.run("fit", "--wandb={}")
    cli.trainer.loggers[1].finish()
    cli = project.run("fit", "--wandb={}", "--resume=auto", "--trainer.max_epochs=3")
    cli.trainer.loggers[1].finish()
    (run,) = project.runs
    first, second = (read_offline_run(path) for path in sorted((run / "wandb").glob("offline-run-*")))
    assert [first.run_id, second.run_id] == [run.name, f"{run.name}-1"]
    steps_of = [{row["trainer/global_step"] for row in found.history} for found in (first, second)]
    assert not steps_of[0] & steps_of[1]


@pytest.mark.slow
def test_two_processes_share_one_run(project):
    pytest.importorskip("wandb")
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent / 'plugins'}"}
    script = Path(__file__).with_name("tiny.py")
    done = subprocess.run(
        [sys.executable, str(script), "fit", "--trainer.strategy=ddp", "--trainer.devices=2", "--wandb={}"],
        cwd=project.root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (run,) = project.runs
    assert {p.name for p in run.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints", "wandb", "run.png"}
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"epoch=1-step=4.ckpt", "last.ckpt"}
    assert done.stdout.count("run folder:") == 1
    # The validation value is the one of a single process with the same weights.
    logged = [float(row["val/loss"]) for row in rows(run / "metrics.csv") if row["val/loss"]]
    cli = project.run("validate", "--ckpt_path=last")
    (row,) = rows(cli.run_folder / "metrics.csv")
    assert float(row["val/loss"]) == pytest.approx(logged[-1], rel=1e-5)


@pytest.mark.slow
def test_two_nodes_train_as_one_process_and_share_one_run(project):
    """Two agents of torchrun meet on loopback: they do what one process does with batches twice as large."""
    pytest.importorskip("wandb")
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent / 'plugins'}"}
    launch = [
        *[sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"],
        *[f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=tiny", "--rdzv-conf=join_timeout=60"],
        *[str(Path(__file__).with_name("tiny.py")), "fit", "--trainer.num_nodes=2", "--trainer.devices=1"],
        *["--data.resumable=true", "--data.batch_size=4", "--trainer.log_every_n_steps=1", "--wandb={}"],
        *["--learning_rate.batch_scaling=linear", "--learning_rate.reference_batch_size=16"],
    ]
    nodes = [
        subprocess.Popen(
            launch, cwd=project.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    (run,) = project.runs
    assert {p.name for p in run.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints", "wandb", "run.png"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"epoch=1-step=8.ckpt", "last.ckpt"}
    assert "".join(said).count("run folder:") == 1
    known = [path.read_text() for path in project.root.glob("rank-*.txt")]
    assert known == [f"{run} {run}"] * 2, "every process knows the folder that the first one chose"
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert sum("train/loss" in row for row in read_offline_run(offline).history) == 8

    project.run(
        "fit",
        "--data.resumable=true",
        "--trainer.log_every_n_steps=1",
        "--learning_rate.batch_scaling=linear",
        "--learning_rate.reference_batch_size=16",
    )
    for key, count in {"val/loss": 2, "lr/decay": 8}.items():
        two, one = ([float(row[key]) for row in rows(r / "metrics.csv") if row.get(key)] for r in project.runs)
        assert len(one) == count
        assert two == pytest.approx(one, rel=1e-5), key
    two, one = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for r in project.runs)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_last_is_last_although_its_settings_changed_on_a_resume(project):
    first = project.run("fit", "--trainer.max_epochs=1", "--checkpoint.every_n_train_steps=2")
    again = project.run("fit", "--resume=auto", "--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=3")
    assert again.run_folder == first.run_folder
    folder = again.run_folder / "checkpoints"
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("last*.ckpt")}
    assert list(steps) == ["last.ckpt"]
    assert steps["last.ckpt"] > first.trainer.global_step
