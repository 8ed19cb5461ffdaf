"""A project takes what changed in its template by cruft, and keeps what changed in itself."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import CHECKOUT, Bake, clean_environment, run_cookiecutter
from .test_generation import own_files, tomllib

PARTS = ("template", "plugins", "cookiecutter.json", "pyproject.toml", "constraints.txt", "LICENSE")


class Place:
    """A new user's home, with a copy of this repository under git."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repository = home / "firstlight"
        for part in PARTS:
            source = CHECKOUT / part
            if source.is_dir():
                shutil.copytree(source, self.repository / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, self.repository / part)
        self.commit(self.repository, "a version")

    def run(self, command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        env = clean_environment(self.home)
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)

    def git(self, folder: Path, *arguments: str) -> str:
        who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        done = self.run(["git", *who, *arguments], folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit(self, folder: Path, message: str) -> None:
        if not (folder / ".git").is_dir():
            self.git(folder, "init", "--quiet")
        self.git(folder, "add", "--all")
        self.git(folder, "commit", "--quiet", "--message", message)

    def cruft(self, cwd: Path, *arguments: str, code: int = 0) -> str:
        done = self.run([str(Path(sys.executable).with_name("cruft")), *arguments], cwd)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def new_version(self) -> None:
        """The template gets another comment, and the package another version."""
        fast = next(self.repository.glob("template/{{*/configs/debug/fast.yaml"))
        fast.write_text(fast.read_text().replace("# Every part once", "# Each part once"))
        package = self.repository / "plugins" / "firstlight" / "__init__.py"
        package.write_text(package.read_text().replace('__version__ = "0.1.0"', '__version__ = "0.1.1"'))
        self.commit(self.repository, "another version")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_project_is_created_checked_and_updated(place: Place) -> None:
    options = ["--directory", "template", "--no-input", "--default-config"]
    place.cruft(place.home, "create", str(place.repository), *options)
    project = place.home / "first-light"
    place.commit(project, "as generated")
    place.cruft(project, "check")
    assert place.cruft(project, "diff", "--exit-code").strip() == "", "what was generated is generated again to the bit"

    recipe = project / "configs" / "default.yaml"
    recipe.write_text(recipe.read_text().replace("max_epochs: 20", "max_epochs: 7"))
    place.commit(project, "mine")
    place.new_version()
    assert "out of date" in place.cruft(project, "check", code=1)
    place.cruft(project, "update", "--skip-apply-ask")
    place.commit(project, "updated")

    place.cruft(project, "check")
    assert "max_epochs: 7" in recipe.read_text()
    assert "# Each part once" in (project / "configs" / "debug" / "fast.yaml").read_text()
    (wheel,) = (project / "vendor").iterdir()
    assert wheel.name == "firstlight-0.1.1-py3-none-any.whl"
    assert b'__version__ = "0.1.1"' in zipfile.ZipFile(wheel).read("firstlight/__init__.py")
    pyproject = (project / "pyproject.toml").read_text()
    assert f"vendor/{wheel.name}" in pyproject
    assert tomllib.loads(pyproject)["tool"]["firstlight"] == {"template_version": "0.1.1", "task": "vision"}
    changed = place.cruft(project, "diff")
    assert "max_epochs: 7" in changed
    assert changed.count("diff --git") == 1, "the project's own change, and nothing else"


def test_a_project_of_cookiecutter_is_linked_later(place: Place) -> None:
    assert run_cookiecutter(place.home, str(place.repository), "--no-input", "task=blank").returncode == 0
    project = place.home / "first-light"
    place.commit(project, "as generated")
    link = ["link", str(place.repository), "--directory", "template", "--no-input"]
    place.cruft(project, *link, "--extra-context", json.dumps({"task": "blank"}))
    place.commit(project, "linked")
    place.cruft(project, "check")
    assert place.cruft(project, "diff", "--exit-code").strip() == ""


def test_without_hooks_the_project_is_the_same_but_for_firstlight_s_wheel(bake: Bake, tmp_path: Path) -> None:
    done = run_cookiecutter(
        tmp_path, str(CHECKOUT), "--directory", "template", "--no-input", "--accept-hooks", "no", "task=blank"
    )
    assert done.returncode == 0, done.stderr
    bare, whole = tmp_path / "first-light", bake(task="blank")
    names = [{path.relative_to(p).as_posix() for path in own_files(p)} - {"runs"} for p in (bare, whole)]
    assert names[0] == {name for name in names[1] if not name.startswith("runs/")}
    assert not (bare / "vendor").exists()
    different = [name for name in names[0] if (bare / name).read_bytes() != (whole / name).read_bytes()]
    assert different == ["pyproject.toml"]
    needs = tomllib.loads((bare / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "firstlight[viz,wandb]>=0.1,<0.2" in needs, "from the package index"


@pytest.mark.slow
def test_without_hooks_the_project_works(tmp_path: Path) -> None:
    answers = ["task=blank", "logger=csv", "--accept-hooks", "no"]
    assert run_cookiecutter(tmp_path, str(CHECKOUT), "--directory", "template", "--no-input", *answers).returncode == 0
    project = tmp_path / "first-light"
    env = clean_environment(tmp_path) | {"PYTHONPATH": f"{project / 'src'}:{CHECKOUT / 'plugins'}"}
    quick = ["tests/test_readme.py", "tests/test_data.py", "tests/test_model.py", "tests/test_recipe.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quick],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
