"""Projects generated for the tests: each set of answers once."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
Bake = Callable[..., Path]


def clean_environment(home: Path) -> dict[str, str]:
    """The environment of a new user: no configuration, no git around, no name given to a run."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("COOKIECUTTER", "GIT_", "WANDB"))}
    # One thread: small tensors do not gain by a second, which on a busy machine is waited for at every step.
    return {"OMP_NUM_THREADS": "1", **kept, "HOME": str(home), "GIT_CEILING_DIRECTORIES": str(home)}


def run_cookiecutter(home: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """cookiecutter's own command line, as a user calls it."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("cookiecutter")), *arguments],
        cwd=cwd or home,
        env=clean_environment(home),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="session")
def bake(tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """bake(task="blank", ...) -> the folder of the project with these answers."""
    made: dict[tuple[tuple[str, str], ...], Path] = {}

    def generate(**answers: str) -> Path:
        key = tuple(sorted(answers.items()))
        if key not in made:
            home = tmp_path_factory.mktemp("bake")
            given = [f"{name}={value}" for name, value in answers.items()]
            done = run_cookiecutter(home, str(CHECKOUT), "--no-input", *given)
            assert done.returncode == 0, done.stdout + done.stderr
            (made[key],) = (path for path in home.iterdir() if (path / "pyproject.toml").is_file())
        return made[key]

    return generate
