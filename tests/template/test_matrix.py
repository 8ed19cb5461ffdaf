"""Every task trains; with every logger, in the marked group, all that a project has ends well."""

import csv
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from .conftest import CHECKOUT, Bake, clean_environment
from .test_generation import QUESTIONS

# One process for all of them: the imports cost more than the steps. Each project has its own package.
TRAIN_ALL = """
import importlib, sys, warnings
import torch
torch.set_num_threads(1)
warnings.simplefilter("ignore")
for package in sys.argv[2:]:
    main = importlib.import_module(f"{package}.main").main
    main(["fit", "--config", "configs/debug/fast.yaml", "--runs_dir", sys.argv[1], "--run_name", package,
          "--trainer.accelerator", "cpu", "--trainer.devices", "1"])
"""


def run(command: list[str], projects: list[Path], cwd: Path, home: Path) -> str:
    """What a command says, with these projects and this firstlight to be imported; it has to end with 0."""
    places = os.pathsep.join([*(str(project / "src") for project in projects), str(CHECKOUT / "plugins")])
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment(home) | {"PYTHONPATH": places, "MYPYPATH": places, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def losses(run_folder: Path) -> list[float]:
    """The training losses of a run, whatever the terms of its task."""
    with (run_folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [key for key in rows[0] if key.startswith("train/loss")]
    assert keys
    return [float(row[key]) for row in rows for key in keys if row[key]]


@pytest.mark.slow
def test_every_task_trains_a_few_steps(bake: Bake, tmp_path: Path) -> None:
    tasks = QUESTIONS["task"]
    projects = [bake(task=task, package_name=f"few_{task}") for task in tasks]
    runs = tmp_path / "runs"
    packages = [f"few_{task}" for task in tasks]
    run([sys.executable, "-c", TRAIN_ALL, str(runs), *packages], projects, tmp_path, tmp_path)
    for package in packages:
        (folder,) = (runs / package).iterdir()
        found = losses(folder)
        assert len(found) >= 8, package
        assert all(map(math.isfinite, found)), package
        assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.matrix
@pytest.mark.parametrize(("task", "logger"), list(product(QUESTIONS["task"], QUESTIONS["logger"])))
def test_all_that_a_project_has(task: str, logger: str, bake: Bake, tmp_path: Path) -> None:
    project = bake(task=task, logger=logger)
    python = [sys.executable, "-m"]
    run([*python, "ruff", "check", "--no-cache", "."], [project], project, tmp_path)
    run([*python, "ruff", "format", "--check", "--no-cache", "."], [project], project, tmp_path)
    run([*python, "mypy", "--cache-dir", str(tmp_path / "mypy")], [project], project, tmp_path)
    run([*python, "pytest", "-q", "-p", "no:cacheprovider"], [project], project, tmp_path)
    run([*python, "first_light", "check"], [project], tmp_path, tmp_path)
    runs = ["--runs_dir", str(tmp_path / "runs"), "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    run([*python, "first_light", "fit", "--config", "configs/debug/fast.yaml", *runs], [project], tmp_path, tmp_path)
    for command in ("validate", "test", "predict"):
        run([*python, "first_light", command, "--run_name", "fast", *runs], [project], tmp_path, tmp_path)
    (folder,) = (tmp_path / "runs" / "fast").iterdir()
    assert {"validate", "test", "predict"} <= {path.name for path in folder.iterdir()}
