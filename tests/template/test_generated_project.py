"""A generated project as its user meets it: installed from its own vendor folder, then every command."""

import csv
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .conftest import Bake, clean_environment

pytestmark = pytest.mark.slow


class Installed:
    """A project in a virtual environment of its own, which borrows only third-party packages from ours."""

    def __init__(self, project: Path, home: Path) -> None:
        self.project = project
        self.home = home
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
        self.python = home / "venv" / "bin" / "python"
        (folder,) = (home / "venv").glob("lib/*/site-packages")
        (folder / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
        self.run("-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "-e", ".")

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        environment = clean_environment(self.home)
        environment.pop("PYTHONPATH", None)
        environment["PATH"] = f"{self.python.parent}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd or self.project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{' '.join(arguments)}\n{said}"
        return said

    def command(self, *arguments: str) -> str:
        """``python -m first_light ...`` from another working directory."""
        return self.run("-m", "first_light", *arguments, cwd=self.home)

    def runs(self, name: str) -> list[Path]:
        return sorted((self.project / "runs" / name).iterdir())


def last_value(table: Path, key: str) -> float:
    with table.open(newline="") as file:
        return float([row[key] for row in csv.DictReader(file) if row.get(key)][-1])


@pytest.fixture(scope="module", params=["vision", "blank"])
def installed(request: pytest.FixtureRequest, bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    # CSV only for one of them, so that both kinds of logging are met.
    answers = {"vision": {}, "blank": {"task": "blank", "logger": "csv"}}[request.param]
    return Installed(bake(**answers), tmp_path_factory.mktemp("user"))


def test_firstlight_comes_from_the_project(installed: Installed) -> None:
    where = installed.run("-c", "import firstlight; print(firstlight.__file__)")
    assert str(installed.home) in where


def test_the_projects_own_tests_pass(installed: Installed) -> None:
    assert re.search(r"\d+ passed", installed.run("-m", "pytest", "-q", "-p", "no:cacheprovider"))


def test_types(installed: Installed) -> None:
    assert "Success" in installed.run("-m", "mypy")


def test_every_command_from_another_folder(installed: Installed) -> None:
    installed.command("fit")
    for name in ("validate", "test", "predict", "export"):
        installed.command(name)
    run = installed.runs("first-light")[-1]
    assert (run / "predict" / "predictions.csv").is_file()
    assert {"model.pt2", "export.json"} <= {path.name for path in (run / "export").iterdir()}
    assert (run / "model_card.md").is_file()
    if (installed.project / "src" / "first_light" / "baseline.py").is_file():
        baseline = float(installed.run("-m", "first_light.baseline").split()[-1])
        accuracy = last_value(run / "test" / "metrics.csv", "test/accuracy")
        assert accuracy >= 0.97
        assert accuracy > baseline
        assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    else:
        assert last_value(run / "test" / "metrics.csv", "test/loss") < 0.01
        assert not (run / "wandb").exists()


def test_a_profile_is_printed(installed: Installed) -> None:
    said = installed.command("fit", "--config", "configs/debug/profile.yaml", "--trainer.limit_train_batches", "2")
    assert "run_training_batch" in said


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_make_one_run(installed: Installed, strategy: str) -> None:
    overlays = ["--config", "configs/debug/fast.yaml", "--config", f"configs/strategy/{strategy}.yaml"]
    said = installed.command("fit", *overlays, "--run_name", strategy)
    assert "Starting with 2 processes" in said
    (run,) = installed.runs(strategy)
    # Two batches in each of two processes are the whole validation part: one process must find the same value.
    installed.command("validate", "--run_name", strategy, "--ckpt_path", "last")
    for key in {"val/loss", "val/accuracy"} & set((run / "metrics.csv").read_text().splitlines()[0].split(",")):
        alone = last_value(run / "validate" / "metrics.csv", key)
        assert last_value(run / "metrics.csv", key) == pytest.approx(alone, rel=1e-5), key
