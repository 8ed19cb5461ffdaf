"""Short real trainings for the tests that look at what they left behind."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from {{ cookiecutter.package_name }}.main import main

# Tensors this small do not need a second thread, which on a busy machine is waited for at every step.
torch.set_num_threads(1)
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]


@pytest.fixture(scope="session")
def fit() -> Callable[..., Path]:
    """Call it as ``fit(runs_dir, *arguments)``: it trains, and returns the folder of the newest run."""

    def run(runs_dir: Path, *arguments: str) -> Path:
        main(["fit", "--runs_dir", str(runs_dir), *CPU, *arguments])
        return max(runs_dir.glob("*/*"))

    return run


@pytest.fixture(scope="session")
def fast_run(fit: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ``configs/debug/fast.yaml``."""
    return fit(tmp_path_factory.mktemp("runs"), "--config", "configs/debug/fast.yaml")


@pytest.fixture(scope="session")
def column() -> Callable[[Path, str], list[float]]:
    """Call it as ``column(run, key)``: the values of a key in ``metrics.csv``."""

    def read(run: Path, key: str) -> list[float]:
        with (run / "metrics.csv").open(newline="") as file:
            return [float(row[key]) for row in csv.DictReader(file) if row[key]]

    return read
