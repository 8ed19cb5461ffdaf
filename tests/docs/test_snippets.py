"""What the pages say is run: Python blocks as they stand, commands and YAML against what the repository has."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, StrictUndefined
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from firstlight._autoload import KNOWN
from firstlight.callbacks import LearningRateScheduler
from firstlight.cli._main import _parser
from firstlight.cli._tune_options import add_options as add_tune_options
from firstlight.tracking import SafeWandbLogger

sys.path.insert(0, str(Path(__file__).parents[2] / "template"))
from firstlight_template.tasks import TASKS

sys.path.pop(0)

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "template"

PROJECT = TEMPLATE / "{{cookiecutter.__project_slug}}"
DEFAULTS = {"task": "vision", "package_name": "first_light"}  # the answers that the pages assume
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^```(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_OR_CHECKED = {"python", "bash", "yaml"}  # the rest is output, and what Sphinx reads


@dataclass(frozen=True)
class Block:
    text: str
    line: int  # of the page, before the first of the block


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[2], text.count("\n", 0, m.start(2))) for m in _BLOCK.finditer(text) if m[1] == language]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def project_files() -> set[str]:
    """What a project has, by paths in it: a name may hold a condition, which is decided as cookiecutter does."""
    environment = Environment(undefined=StrictUndefined)  # noqa: S701  names of files, not pages
    paths = [path.relative_to(PROJECT).as_posix() for path in PROJECT.rglob("*") if path.is_file()]
    return {environment.from_string(path).render(cookiecutter=DEFAULTS, tasks=TASKS) for path in paths}


def test_the_names_of_files_are_those_of_the_task() -> None:
    files = project_files()
    assert {"configs/default.yaml", "src/first_light/__main__.py", "src/first_light/baseline.py"} <= files
    assert not any("{" in path for path in files)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_escapes_by_its_fence(page: Path) -> None:
    """All fences begin a line, and have a language that is run, checked or known to be none."""
    fences = re.findall(r"^(.*)```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(before == "" for before, _ in fences)
    assert all(language == "" for _, language in fences[1::2])
    assert {language for _, language in fences[::2]} <= RUN_OR_CHECKED | {"text", "{eval-rst}", "{toctree}"}
    assert "~~~" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_run(page: Path) -> None:
    """The blocks of a page, one after the other, as a reader would paste them."""
    namespace: dict[str, Any] = {"__name__": "snippet"}
    for block in blocks(page, "python"):
        code = compile("\n" * block.line + block.text, str(page), "exec", dont_inherit=True)
        exec(code, namespace)  # noqa: S102


def commands() -> list[tuple[Path, str]]:
    lines = [(page, line) for page in PAGES for block in blocks(page, "bash") for line in block.text.splitlines()]
    return [(page, line) for page, line in lines if line.strip()]


@pytest.mark.parametrize(
    ("page", "line"), commands(), ids=lambda value: name(value) if isinstance(value, Path) else value
)
def test_commands_name_what_exists(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    words[0] = "python" if re.fullmatch(r"(\.venv/bin/)?python3?", words[0]) else words[0]
    match words:
        case ["make", target, *settings]:
            assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
            tasks = json.loads((TEMPLATE / "cookiecutter.json").read_text())["task"]
            assert set(settings) <= {f"TASK={task}" for task in tasks}
        case ["python", "-m", "pip", "install", *arguments]:
            _check_install(arguments)
        case ["python", "-m", module, *arguments] if module.split(".")[0] == "first_light":
            _check_project_command(module, arguments)
        case ["python", script] if script.endswith(".py"):
            assert (ROOT / script).is_file()
        case ["firstlight", *arguments]:
            further = _parser().parse_known_args(arguments)[1]
            assert not further or arguments[0] == "verify-resume"
            _check_arguments(further)
        case [setting, "python", "train.py"] if setting.startswith("FIRSTLIGHT="):
            assert set(setting.partition("=")[2].split(",")) <= set(KNOWN)
        case ["cookiecutter", "./firstlight", *arguments]:
            _check_answers(arguments)
        case ["cruft", "create" | "link", "ADDRESS", "--directory", folder]:
            assert (ROOT / folder / "cookiecutter.json").is_file()
        case ["sbatch", script] if script.startswith("scripts/"):
            assert script in project_files()
        case ["NODES=2", "HEAD=10.0.0.1:29500", "RUN=night-1", script, *arguments]:
            text = (PROJECT / script).read_text()
            assert all(f"${{{name}:?" in text for name in ("NODES", "HEAD", "RUN"))
            _check_arguments(arguments)
        case ["cruft", "check" | "diff" | "update"]:
            pass
        case ["wandb", command, *_]:
            from wandb.cli import cli

            assert command in cli.cli.commands
        case ["python", "-m", "venv", ".venv"] | ["cd", _] | [".", ".venv/bin/activate"] | ["git", "clone", *_]:
            pass
        case _:
            pytest.fail(f"{name(page)} has a command that nothing checks: {line}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_that_a_page_names_in_passing_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))
    assert not [target for target in named if not re.search(rf"^{target}:.*##", makefile, re.MULTILINE)]


def _check_install(arguments: list[str]) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", pyproject, re.DOTALL)
    assert extras is not None
    known = re.findall(r"^(\w+) = ", extras[1], re.MULTILINE)
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        assert option in ("-c", "-e")
        if option == "-c":
            assert (ROOT / value).is_file()
        else:
            asked = re.fullmatch(r"\.\[([\w,]+)\]", value)
            assert asked is not None
            assert set(asked[1].split(",")) <= set(known)


def _check_project_command(module: str, arguments: list[str]) -> None:
    """The project is the one of the default answers: vision, as package first_light."""
    _, _, part = module.partition(".")
    assert f"src/first_light/{part or '__main__'}.py" in project_files()
    if not part and arguments[0] == "tune":
        parser = ArgumentParser(exit_on_error=False)
        add_tune_options(parser)
        assert f"tune/priority_{parser.parse_args(arguments[1:]).priority}.yaml" in project_files()
    elif not part:
        assert arguments[0] in ("fit", "validate", "test", "predict", "export", "check", "verify-resume")
        _check_arguments(arguments[1:])


def _check_arguments(arguments: list[str]) -> None:
    known = {"--trainer": Trainer, "--learning_rate": LearningRateScheduler, "--wandb": SafeWandbLogger}
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        place, _, key = option.partition(".")
        if option == "--config":
            assert value in project_files()
        elif option == "--seed_everything":
            assert value.isdecimal()
        else:
            assert key in signature(known[place]).parameters


def _check_answers(arguments: list[str]) -> None:
    questions = json.loads((TEMPLATE / "cookiecutter.json").read_text())
    rest = iter(arguments)
    for word in rest:
        key, equals, value = word.partition("=")
        if equals:
            choices = questions[key]
            assert not isinstance(choices, list) or value in choices
        elif word == "--directory":
            assert (ROOT / next(rest) / "cookiecutter.json").is_file()
        else:
            assert word == "--no-input"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name)
def test_yaml_blocks_use_keys_and_classes_that_exist(page: Path) -> None:
    from firstlight.cli._slots import SLOTS

    for block in blocks(page, "yaml"):
        config = yaml.safe_load(block.text)
        # Search spaces have dotted keys.
        keys = {key.partition(".")[0] for key in config}
        assert keys <= {*SLOTS, "trainer", "model", "data", "seed_everything", "run_name", "runs_dir"}
        for path in re.findall(r"class_path: (\S+)", block.text):
            module, _, cls = path.rpartition(".")
            assert hasattr(import_module(module), cls)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "SECURITY.md"], ids=name)
def test_links_of_pages_that_sphinx_does_not_read(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target
