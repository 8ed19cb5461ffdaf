"""Every task reaches its level: the project of a user, installed, through every command.

Minutes of training: ``make test-tasks`` runs this, the default run does not.
"""

import re

import pytest

from .conftest import Bake
from .test_generated_project import Installed, last_value

pytestmark = pytest.mark.tasks

# Task: the file of metrics in the run folder, the value in it, and what it must reach.
LEVELS = {
    "vision": ("test/metrics.csv", "test/accuracy", 0.98),
    "contrastive": ("test/metrics.csv", "test/linear_probe", 0.95),
    "vae": ("test/metrics.csv", "test/elbo", 11.5),  # probabilistic PCA: 6.5
    "gan": ("test/metrics.csv", "test/classes", 9),
}


@pytest.mark.parametrize("task", LEVELS)
def test_a_task_reaches_its_level(task: str, bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> None:
    table, key, level = LEVELS[task]
    installed = Installed(bake(task=task), tmp_path_factory.mktemp("user"))
    installed.command("check")
    for command in ("fit", "validate", "test", "predict"):
        installed.command(command)
    installed.run("-m", "first_light.baseline")
    (run,) = installed.runs("first-light")
    assert last_value(run / table, key) >= level
    assert "Success" in installed.run("-m", "mypy")
    assert re.search(r"\d+ passed", installed.run("-m", "pytest", "-q", "-p", "no:cacheprovider"))
    for strategy in ("ddp",) if task == "gan" else ("ddp", "fsdp2"):  # FSDP2 cannot freeze a network in between
        overlays = ["--config", "configs/debug/fast.yaml", "--config", f"configs/strategy/{strategy}.yaml"]
        installed.command("fit", *overlays, "--run_name", strategy)
