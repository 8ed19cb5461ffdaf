"""The part of the template that runs inside cookiecutter's own process, as a Jinja extension.

It can do what a hook cannot: stop with a plain message before a folder exists (cookiecutter prints a
traceback when a hook fails), see a misspelt key on the command line (cookiecutter drops it in silence),
refuse Jinja in a value before cookiecutter runs it, and know where the template lies (``_repo_dir`` may
be relative, and cruft does not set it).
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from cookiecutter.exceptions import FailedHookException
from jinja2 import Environment
from jinja2.ext import Extension

from firstlight_template.answers import answers_fault, command_line_fault
from firstlight_template.tasks import TASKS

TEMPLATE = Path(__file__).resolve().parents[1]


def questions() -> list[str]:
    """The names of the questions, from the file that asks them."""
    return [key for key in json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8")) if key[0] != "_"]


def stop_at(fault: str) -> None:
    """Raise what cookiecutter's command line prints as it is, with exit code 1."""
    if fault:
        raise FailedHookException(f"firstlight: {fault}")


def checked(answers: Mapping[str, str]) -> str:
    """The filter that ``cookiecutter.json`` puts all answers through when the last one is given."""
    stop_at(answers_fault(answers))
    return "yes"


class TemplateExtension(Extension):
    """Adds the filter ``checked``, the globals ``template_folder`` and ``tasks``; refuses a bad command line."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        stop_at(command_line_fault(sys.argv, questions()))
        environment.filters["checked"] = checked
        environment.globals["template_folder"] = str(TEMPLATE)
        environment.globals["tasks"] = TASKS
