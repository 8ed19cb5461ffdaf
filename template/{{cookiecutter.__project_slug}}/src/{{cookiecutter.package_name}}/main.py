"""The command line: ``fit``, ``validate``, ``test`` and ``predict``."""

from pathlib import Path

from firstlight.cli import FirstlightCLI
{%- if cookiecutter.task == "vision" %}
from firstlight.modules import SupervisedModule

from .data import DigitsDataModule
{%- else %}

from .data import StarterDataModule
from .model import StarterModule
{%- endif %}


def project_root() -> Path:
    """Return the folder of ``configs`` and ``runs``: the project, or the current one without its sources."""
    project = Path(__file__).resolve().parents[2]
    return project if (project / "configs").is_dir() else Path.cwd()


def main(args: list[str] | None = None) -> None:
    """Run one command; ``args`` are those of the shell unless given."""
{%- if cookiecutter.task == "vision" %}
    FirstlightCLI(SupervisedModule, DigitsDataModule, project_root=project_root(), args=args)
{%- else %}
    FirstlightCLI(StarterModule, StarterDataModule, project_root=project_root(), args=args)
{%- endif %}
