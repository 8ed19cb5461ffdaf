"""Runs of a generated project are stopped and killed at random moments, and go on by the one command of its README."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults._runs import EQUAL, Run, Server, equal, trained
from faults._table import FaultTable
from template.conftest import CHECKOUT, run_cookiecutter

from firstlight.tracking import read_offline_run

pytestmark = [pytest.mark.slow, pytest.mark.faults]
EPOCHS = 5
STEPS = EPOCHS * 20


@dataclass
class Project(Run):
    """The runs of the vision task in its shipped recipe, but shorter; W&B is offline."""

    def __post_init__(self) -> None:
        self.root.mkdir()

    def attempt(self, *args: str, largest_file: int = 0) -> Any:
        runs = [f"--runs_dir={self.root / 'runs'}", "--run_name=tiny", f"--trainer.max_epochs={EPOCHS}"]
        return super().attempt(*runs, "--trainer.accelerator=cpu", "--trainer.devices=1", *args)

    def saved(self) -> list[Path]:
        return list(self.root.glob("runs/tiny/*/checkpoints/*.ckpt"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("wandb")
    home = tmp_path_factory.mktemp("bake")
    done = run_cookiecutter(home, str(CHECKOUT), "--no-input")
    assert done.returncode == 0, done.stdout + done.stderr
    (sources,) = home.glob("*/src")
    server = Server("first_light.main", sources)
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(project: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What a run ends with that nothing happened to, and the seconds that it takes."""
    run = Project(project, tmp_path_factory.mktemp("whole") / "runs")
    start = time.monotonic()
    done = run.fit()
    assert done.code == 0, done.output
    return trained(run.checkpoints / "last.ckpt"), time.monotonic() - start


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_stopped_or_killed_goes_on(
    project: Server,
    whole: tuple[dict[str, Any], float],
    fault_table: FaultTable,
    tmp_path: Path,
    number: signal.Signals,
    seed: int,
) -> None:
    run = Project(project, tmp_path / "project")
    with run.attempt() as first:
        first.wait_for(run.saved)  # before the first checkpoint there is nothing to go on from
        time.sleep(random.Random(seed).uniform(0, 0.2 * whole[1]))
        with suppress(ProcessLookupError):
            os.kill(first.pid, number)
    ended = first.code == 0  # the fit was over before the signal came
    assert ended or first.code in (143, -number), first.output
    folder = run.folder

    done = run.fit("--resume=auto")
    assert done.code == 0, done.output
    assert run.folder == folder, "one run, one folder"
    step = done.resumed_from
    assert 0 < step <= STEPS
    if first.code == 143:
        assert f"after step {step}; --resume auto goes on" in first.output
    assert equal(trained(run.checkpoints / "last.ckpt"), whole[0])

    attempts = [read_offline_run(path) for path in sorted(folder.glob("wandb/offline-run-*"))]
    written = [one for one in attempts if one.job_type]  # W&B writes every 15 seconds: a kill before leaves nothing
    assert {one.group for one in written} == {folder.name}
    assert len({one.run_id for one in written}) == len(written), "no two attempts write to one run"
    logged = [step for one in written for step in one.series("train/loss")[0]]
    if number == signal.SIGTERM:
        assert len(written) == 2
        assert sorted(logged) == logged, "each step once, and in order"
        assert len(set(logged)) == len(logged)
    name = f"{number.name} in a generated project"
    fault_table.add(name, "the run had ended" if ended else EQUAL, None if ended else 0 if first.code == 143 else None)
