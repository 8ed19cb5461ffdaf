"""Every callback and every module that is not abstract has a page, with code that runs; pictures come from scripts."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "figures"
SCRIPTS = sorted(path for path in FIGURES.glob("*.py") if not path.name.startswith("_"))
PICTURES = {
    path: [(alt, (path.parent / target).resolve()) for alt, target in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text)]
    for path in sorted(DOCS.rglob("*.md"))
    if "![" in (text := path.read_text(encoding="utf-8"))
}


def kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def public(room: str, base: type) -> list[tuple[str, str]]:
    module = import_module(f"firstlight.{room}")
    found = [(name, getattr(module, name)) for name in module.__all__]
    return [
        (room, name)
        for name, thing in found
        if isinstance(thing, type) and issubclass(thing, base) and not inspect.isabstract(thing)
    ]


PAGES = [*public("callbacks", Callback), *public("modules", LightningModule)]


@pytest.mark.parametrize(("room", "name"), PAGES)
def test_every_callback_and_module_has_a_page_with_code_that_runs(room: str, name: str) -> None:
    """The blocks themselves are run by test_snippets."""
    page = DOCS / "reference" / room / f"{kebab(name)}.md"
    assert page.is_file()
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert any(re.search(rf"\b{name}\(", block) for block in blocks), "a python block that makes one"
    assert f"\nreference/{room}/{page.stem}\n" in (DOCS / "index.md").read_text(encoding="utf-8"), "in the tree"


@pytest.mark.parametrize("name", [name for room, name in PAGES if room == "callbacks"])
def test_the_page_of_a_callback_gives_its_role_and_its_lines_of_yaml(name: str) -> None:
    text = (DOCS / "reference" / "callbacks" / f"{kebab(name)}.md").read_text(encoding="utf-8")
    role = getattr(import_module("firstlight.callbacks"), name).role
    assert f"*{role.capitalize()}.*" in text
    assert "```yaml\n" in text
    for part in ("When", "Logs and writes", "Stands aside", "Pitfalls", "Source"):
        assert f"**{part}**" in text


def test_pictures_have_a_script_a_page_and_words_and_are_small() -> None:
    shown = [picture for pictures in PICTURES.values() for _, picture in pictures if picture.parent == FIGURES]
    assert set(shown) == set(FIGURES.glob("*.png")) == {script.with_suffix(".png") for script in SCRIPTS}
    assert all(len(alt.split()) >= 8 for pictures in PICTURES.values() for alt, _ in pictures)
    assert all(picture.stat().st_size < 100_000 for picture in shown)


def test_pictures_of_tasks_have_a_page_and_are_small() -> None:
    """They come from runs of minutes, so they are not drawn anew here."""
    shown = {picture for pictures in PICTURES.values() for _, picture in pictures}
    drawn = set((FIGURES / "tasks").glob("*.png"))
    assert drawn
    assert drawn <= shown
    assert all(picture.stat().st_size < 80_000 for picture in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_draws_the_picture_that_is_shown(script: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(DOCS.parent / "plugins"), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shown, drawn = image.imread(script.with_suffix(".png")), image.imread(tmp_path / f"{script.stem}.png")
    assert shown.shape == drawn.shape
    assert abs(shown - drawn).mean() < 0.02, "the same curves; fonts may differ a little"
