"""README.md, CI, AGENTS.md and the Makefile say the same."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def ci_commands() -> list[str]:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text("utf-8"))
    return [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]


def make_commands() -> list[str]:
    recipes = re.findall(r"^\t\$\(PYTHON\) -m (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    tools = ("ruff", "mypy", "pytest")  # which the README calls by name
    return [line if line.startswith(tools) else f"python -m {line}" for line in recipes]


def test_ci_runs_the_commands_of_the_readme() -> None:
    assert commands("README.md") == ci_commands()


def test_agents_and_make_are_told_no_other_commands() -> None:
    for told in (commands("AGENTS.md"), make_commands()):
        assert told
        assert set(told) <= set(commands("README.md"))


def test_the_readme_lists_every_config() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs == set(re.findall(r"^\| `(configs/[^`]+)`", text, re.MULTILINE))
