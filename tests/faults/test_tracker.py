"""W&B and its disk, network and helper fail under real runs: they end as if nothing had happened, with all values."""

from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults._runs import EQUAL, Attempt, Run, equal, trained
from faults._table import FaultTable
from faults.project import STEPS
from wandb_server import FAULTS, WandbServer

from firstlight.tracking import OfflineRun, read_offline_run

pytestmark = [pytest.mark.slow, pytest.mark.faults]
WANDB = ("--wandb={finish_timeout: 2, init_timeout: 3}", "--model.pause=0.2")
LOSSES = list(range(STEPS))


@pytest.fixture
def wandb_server(run: Run) -> Iterator[WandbServer]:
    made = WandbServer()
    run.environment |= made.environment
    yield made
    made.close()


def helper(attempt: Attempt) -> int:
    """Return the process id of wandb-core."""
    for pid in Path(f"/proc/{attempt.pid}/task/{attempt.pid}/children").read_text().split():
        if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise AssertionError("wandb-core does not run")


def tracked(run: Run) -> list[OfflineRun]:
    return [read_offline_run(path) for path in sorted((run.folder / "wandb").glob("*run-2*"))]


def as_if_nothing_had_happened(run: Run, attempt: Attempt, unbroken: Any) -> list[str]:
    """Return what was said about W&B."""
    assert attempt.code == 0, attempt.output
    assert attempt.steps == list(range(1, STEPS + 1))
    assert "Traceback" not in attempt.output
    assert equal(trained(run.checkpoints / "last.ckpt"), unbroken)
    with (run.folder / "metrics.csv").open(newline="") as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert logged == LOSSES, "metrics.csv has every step, once"
    return [line for line in attempt.output.splitlines() if "W&B" in line]


def steps_of(runs: list[OfflineRun]) -> list[int]:
    return [step for one in runs for step in one.series("train/loss")[0]]


def test_the_helper_is_killed(run: Run, unbroken: Any, fault_table: FaultTable):
    with run.attempt(*WANDB) as attempt:
        attempt.wait_for(lambda: 16 in attempt.steps)
        os.kill(helper(attempt), signal.SIGKILL)
    said = as_if_nothing_had_happened(run, attempt, unbroken)
    first, second = tracked(run)
    found = steps_of([first, second])
    assert len(found) == len(set(found))
    missing = sorted(set(LOSSES) - set(found))
    assert len(missing) <= 2.5 / 0.2, "two seconds of rows, and metrics.csv has them"
    assert missing == list(range(missing[0], missing[-1] + 1)) if missing else True
    assert said[-1].endswith(f"wandb sync {first.path.parent} {second.path.parent}")
    fault_table.add("wandb-core is killed", "trained on, rest in a second offline run: " + EQUAL, 0)


def test_the_helper_is_stopped(run: Run, unbroken: Any, fault_table: FaultTable):
    """A run of this size fits into the pipe to it, so that the end is where it shows."""
    with run.attempt(*WANDB) as attempt:
        attempt.wait_for(lambda: 16 in attempt.steps)
        os.kill(helper(attempt), signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < STEPS * 0.3 + 20
    said = as_if_nothing_had_happened(run, attempt, unbroken)
    assert "did not reach the disk" in said[-1]
    fault_table.add("wandb-core hangs", "trained on, ended within its bound: " + EQUAL, 0)


@pytest.fixture
def small_disk(run: Run) -> Iterator[Path]:
    place = run.root / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_under_wandb(run: Run, small_disk: Path, unbroken: Any, fault_table: FaultTable):
    attempt = run.fit(f"--wandb={{save_dir: {small_disk}}}")
    said = as_if_nothing_had_happened(run, attempt, unbroken)
    assert "did not reach the disk" in said[-1] or "switched off" in said[-1], said
    fault_table.add("disk full under wandb", "trained on, told, metrics.csv whole: " + EQUAL, 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_network_is_lost_in_the_middle(
    run: Run, unbroken: Any, fault_table: FaultTable, wandb_server: WandbServer, fault: str
):
    with run.attempt(*WANDB) as attempt:
        attempt.wait_for(lambda: 16 in attempt.steps)
        wandb_server.fault = fault
    said = as_if_nothing_had_happened(run, attempt, unbroken)
    (one,) = tracked(run)
    assert one.series("train/loss")[0] == LOSSES
    assert "the upload is not complete" in said[-1]
    wandb_server.fault = None
    command = shlex.split(said[-1].split("to upload the rest: ")[1])
    sync = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    environment = {**os.environ, **wandb_server.environment}
    done = subprocess.run(sync, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = wandb_server.rows[one.run_id]
    assert [row["trainer/global_step"] for _, row in sorted(rows.items()) if "train/loss" in row] == LOSSES
    fault_table.add(f"network lost: server {fault}", "trained on, all rows there after the sync: " + EQUAL, 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_no_network_from_the_start(
    run: Run, unbroken: Any, fault_table: FaultTable, wandb_server: WandbServer, fault: str
):
    wandb_server.fault = fault
    attempt = run.fit("--wandb={init_timeout: 3}")
    said = as_if_nothing_had_happened(run, attempt, unbroken)
    (one,) = tracked(run)
    assert one.series("train/loss")[0] == LOSSES
    assert said[-1].endswith(f"to upload: wandb sync {one.path.parent}")
    fault_table.add("no network at the start", "trained on, offline: " + EQUAL, 0)


def test_a_killed_run_is_resumed_under_its_id(
    run: Run, unbroken: Any, fault_table: FaultTable, wandb_server: WandbServer
):
    """Killed two steps after a checkpoint: on no side is a step twice in one run."""
    with run.attempt("--wandb={}", "--model.pause=1.5") as attempt:
        attempt.wait_for(lambda: 14 in attempt.steps)
        time.sleep(2.5)  # what was logged is flushed, and sent; the next checkpoint is that of step 16
        os.kill(attempt.pid, signal.SIGKILL)
    (before,) = tracked(run)
    reached = before.series("train/loss")[0][-1]
    wandb_server.resume(before)
    done = run.fit("--resume=auto", "--wandb={}")
    assert done.code == 0, done.output
    assert equal(trained(run.checkpoints / "last.ckpt"), unbroken)
    assert done.resumed_from <= reached, "so that rows came again"
    with (run.folder / "metrics.csv").open(newline="") as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert logged == LOSSES
    for rows in wandb_server.rows.values():
        steps = [row["trainer/global_step"] for row in rows.values() if "train/loss" in row]
        assert len(steps) == len(set(steps))
    assert set(steps_of(tracked(run))) == set(LOSSES), "what a killed process had not sent is in its own folder"
    fault_table.add("SIGKILL, resumed under one W&B id", "no step twice: " + EQUAL, reached + 1 - done.resumed_from)
