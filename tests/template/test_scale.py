"""The scripts that start a training on several machines, as they are: torchrun on loopback, a SLURM of two stubs."""

import csv
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import yaml

from firstlight.tracking import read_offline_run

from .conftest import CHECKOUT, Bake, clean_environment

pytestmark = pytest.mark.slow
CPU = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
# What srun does, as far as a script can tell: a process for each task, which finds its place in the environment and
# gets the signals that srun gets.
SRUN = """\
    #!/usr/bin/env bash
    while [[ "$1" == --* ]]; do shift; done
    tasks=()
    for ((task = 0; task < SLURM_NTASKS; task++)); do
      SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" &
      tasks+=("$!")
    done
    trap 'kill -TERM "${tasks[@]}"' TERM
    code=0
    for task in "${tasks[@]}"; do
      while kill -0 "$task" 2>/dev/null; do wait "$task" || code=$?; done
    done
    exit "$code"
"""
SCONTROL = """\
    #!/usr/bin/env bash
    echo "$@" >> "$SCONTROL_LOG"
"""


def environment(project: Path, home: Path, **more: str) -> dict[str, str]:
    """A shell in which ``python`` finds the project and this firstlight."""
    places = [str(project / "src"), str(CHECKOUT / "plugins")]
    path = [str(home / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    found = {**clean_environment(home), "PYTHONPATH": os.pathsep.join(places), "PATH": os.pathsep.join(path)}
    return {**found, "WANDB_MODE": "offline", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str], project: Path, env: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def column(table: Path, key: str) -> list[float]:
    with table.open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_torchrun_on_two_nodes_makes_one_run(bake: Bake, tmp_path: Path) -> None:
    project = bake(task="blank", logger="csv")
    where = {"NODES": "2", "PROCESSES": "1", "HEAD": f"127.0.0.1:{free_port()}", "RUN": "pair"}
    script = [str(project / "scripts" / "multi_node.sh"), "--config", "configs/debug/fast.yaml", "--run_name", "pair"]
    nodes = [start([*script, *CPU], tmp_path, environment(project, tmp_path, **where)) for _ in range(2)]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "".join(said).count("run folder:") == 1
    (run,) = (project / "runs" / "pair").iterdir()
    assert len(column(run / "metrics.csv", "train/loss")) == 8
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["num_nodes"] == 2
    # Two batches in each of two processes are the whole validation part: one process must find the same value.
    alone = start(
        [
            *[sys.executable, "-m", "first_light", "validate", "--run_name", "pair", "--ckpt_path", "last"],
            *["--trainer.num_nodes", "1", "--trainer.devices", "1", "--trainer.limit_val_batches", "1.0"],
        ],
        project,
        environment(project, tmp_path),
    )
    assert alone.communicate(timeout=300)
    assert alone.returncode == 0
    value = column(run / "validate" / "metrics.csv", "val/loss")[-1]
    assert column(run / "metrics.csv", "val/loss")[-1] == pytest.approx(value, rel=1e-5)


def test_a_missing_node_is_named_before_anything_starts(bake: Bake, tmp_path: Path) -> None:
    project = bake(task="blank", logger="csv")
    script = start([str(project / "scripts" / "multi_node.sh")], tmp_path, environment(project, tmp_path, NODES="2"))
    said = script.communicate(timeout=10)[0]
    assert script.returncode != 0
    assert "HEAD: host:port of one of them" in said


def test_a_slurm_job_is_requeued_and_goes_on_in_the_same_run(bake: Bake, tmp_path: Path) -> None:
    """SIGUSR1 before the time is up; then SLURM starts the script again, this time on two nodes."""
    project = bake(task="blank")
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).write_text(textwrap.dedent(text))
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "blank", "SLURM_SUBMIT_DIR": str(project)}
    job |= {"SLURM_NTASKS_PER_NODE": "1", "SCONTROL_LOG": str(tmp_path / "scontrol.log")}
    script = ["bash", str(project / "scripts" / "train.sbatch"), *CPU, "--early_stopping", "null"]
    runs = project / "runs" / "job-4242"

    def attempt(nodes: int, max_epochs: int) -> "subprocess.Popen[str]":
        sizes = {"SLURM_NNODES": str(nodes), "SLURM_NTASKS": str(nodes), "MASTER_PORT": str(free_port())}
        sizes |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"}
        command = [*script, "--trainer.max_epochs", str(max_epochs)]
        return start(command, tmp_path, environment(project, tmp_path, **job, **sizes))

    first = attempt(nodes=1, max_epochs=100_000)
    give_up = time.monotonic() + 300
    while not list(runs.glob("*/checkpoints/last.ckpt")) and first.poll() is None and time.monotonic() < give_up:
        time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    said = first.communicate(timeout=300)[0]
    assert first.returncode == 0, said
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4242\n"
    (run,) = runs.iterdir()
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)

    second = attempt(nodes=2, max_epochs=saved["epoch"] + 3)
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 0, said
    assert f"(step {saved['global_step']}), in the same run folder" in said
    assert list(runs.iterdir()) == [run]
    end = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert end["global_step"] > saved["global_step"]
    assert end["epoch"] == saved["epoch"] + 2
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4242\n", "a run that is through is not put back"
    ids = [read_offline_run(path).run_id for path in sorted((run / "wandb").glob("offline-run-*"))]
    assert ids == [run.name, f"{run.name}-1"]
