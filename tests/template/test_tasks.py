"""Every task is a choice with a row, and reaches the level that it promises."""

import re
import subprocess
import sys

import pytest

from .conftest import CHECKOUT, Bake
from .test_generated_project import Installed, last_value
from .test_generation import QUESTIONS

sys.path.insert(0, str(CHECKOUT / "template"))
from firstlight_template.tasks import TASKS, Task

sys.path.pop(0)


def test_every_choice_has_its_row() -> None:
    assert QUESTIONS["task"] == list(TASKS)


@pytest.mark.parametrize(
    ("goal", "higher", "value", "baseline", "good"),
    [
        (0.9, True, 0.9, None, True),
        (0.9, True, 0.89, None, False),
        (0.9, True, 0.95, 0.96, False),
        (None, True, 0.5, 0.5, False),
        (None, False, 2.0, 2.1, True),
        (0.05, False, 0.04, 0.09, True),
        (0.05, False, 0.06, 0.09, False),
    ],
)
def test_a_level_is_the_goal_and_better_than_the_baseline(
    goal: float | None, higher: bool, value: float, baseline: float | None, good: bool
) -> None:
    task = Task("", "", "", metric="test/loss", higher_is_better=higher, goal=goal)
    assert task.reached(value, baseline) is good


def test_a_demo_of_no_task_names_those_that_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "visoin"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"visoin is no task; there are {', '.join(TASKS)}" in done.stdout


@pytest.mark.slow
def test_language_in_short(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The task that is furthest from the two which are trained in full: its own tests, with a fit among them."""
    project = Installed(bake(task="language", logger="csv"), tmp_path_factory.mktemp("user"))
    assert re.search(r"\d+ passed", project.run("-m", "pytest", "-q", "-p", "no:cacheprovider"))


@pytest.fixture(scope="module", params=TASKS)
def trained(
    request: pytest.FixtureRequest, bake: Bake, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Installed, Task]:
    project = Installed(bake(task=request.param), tmp_path_factory.mktemp("user"))
    project.command("fit")
    return project, TASKS[request.param]


@pytest.mark.tasks
def test_the_level_is_reached(trained: tuple[Installed, Task]) -> None:
    project, task = trained
    for name in ("validate", "test", "predict", "export"):
        project.command(name)
    run = project.runs("first-light")[-1]
    baseline = float(project.run("-m", "first_light.baseline").split()[-1]) if task.baseline else None
    value = last_value(run / "test" / "metrics.csv", task.metric)
    assert task.reached(value, baseline), (value, baseline)


@pytest.mark.tasks
def test_the_checklist_has_nothing_to_say(trained: tuple[Installed, Task]) -> None:
    trained[0].command("check", "--fail-on", "warning", "--budget", "600")  # seconds; a busy machine needs more


@pytest.mark.tasks
def test_style_types_and_own_tests(trained: tuple[Installed, Task]) -> None:
    for words in (("check", "--no-cache", "."), ("format", "--check", "--no-cache", ".")):
        # Our own: the program is no module that could be borrowed.
        subprocess.run([sys.executable, "-m", "ruff", *words], cwd=trained[0].project, check=True)
    assert re.search(r"\d+ passed", trained[0].run("-m", "pytest", "-q", "-p", "no:cacheprovider"))
    assert "Success" in trained[0].run("-m", "mypy")


@pytest.mark.tasks
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes(trained: tuple[Installed, Task], strategy: str) -> None:
    project, _ = trained
    overlays = ["--config", "configs/debug/fast.yaml", "--config", f"configs/strategy/{strategy}.yaml"]
    cpus = ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    project.command("fit", *overlays, *cpus, "--run_name", strategy)
