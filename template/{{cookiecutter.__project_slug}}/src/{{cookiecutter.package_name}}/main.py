{%- set task = tasks[cookiecutter.task] -%}
"""The command line: ``fit``, ``validate``, ``test`` and ``predict``."""

from pathlib import Path

from firstlight.cli import FirstlightCLI
{%- if task.module_from[0] != "." %}
from {{ task.module_from }} import {{ task.module }}
{%- endif %}

from .data import {{ task.data }}
{%- if task.module_from[0] == "." %}
from {{ task.module_from }} import {{ task.module }}
{%- endif %}


def project_root() -> Path:
    """Return the folder of ``configs`` and ``runs``: the project, or the current one without its sources."""
    project = Path(__file__).resolve().parents[2]
    return project if (project / "configs").is_dir() else Path.cwd()


def main(args: list[str] | None = None) -> None:
    """Run one command; ``args`` are those of the shell unless given."""
    FirstlightCLI({{ task.module }}, {{ task.data }}, project_root=project_root(), args=args)
