"""Every search space fits the configuration."""

from pathlib import Path

import pytest
import yaml

from {{ cookiecutter.package_name }} import main

SPACES = sorted((Path(__file__).resolve().parents[1] / "tune").glob("*.yaml"))


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_every_key_and_value_of_a_space_is_one_of_the_configuration(
    space: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    priority = space.stem.removeprefix("priority_")
    arguments = ["--runs_dir", str(tmp_path), "--priority", priority, "--only_check"]
{%- if tasks[cookiecutter.task].judged_by %}
    arguments += ["--monitor", "{{ tasks[cookiecutter.task].judged_by }}", "--mode", "max"]
{%- endif %}
    main.main(["tune", *arguments])
    said = capsys.readouterr().out
    assert all(f"  {key}: " in said for key in yaml.safe_load(space.read_text("utf-8")))
