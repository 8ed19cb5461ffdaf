"""A short real training, once, for the tests that look at what it left behind."""

from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.main import main

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]


def fit(runs_dir: Path, *arguments: str) -> Path:
    """Run ``fit`` and return the folder of the newest run under ``runs_dir``."""
    main(["fit", "--runs_dir", str(runs_dir), *CPU, *arguments])
    return max(runs_dir.glob("*/*"))


@pytest.fixture(scope="session")
def fast_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ``configs/debug/fast.yaml``."""
    return fit(tmp_path_factory.mktemp("runs"), "--config", "configs/debug/fast.yaml")
