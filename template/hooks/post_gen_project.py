"""Adds what a template cannot render, firstlight and git, then says how to go on.

Standard library only: this runs under the interpreter that cookiecutter was installed with, inside
the generated project. Running it twice changes nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ANSWERS = json.loads({{ cookiecutter | jsonify | jsonify }})
TEMPLATE = Path(json.loads({{ template_folder | jsonify | jsonify }}))
PROJECT = Path.cwd()


def carry_firstlight() -> None:
    """Puts the template's own firstlight into vendor/ and depends on it; else the index is asked."""
    sys.dont_write_bytecode = True  # the template's folder is not ours to write to
    sys.path.insert(0, str(TEMPLATE))
    from firstlight_template.pack_wheel import pack_wheel

    wheel = pack_wheel(TEMPLATE.parent, PROJECT / "vendor")
    if wheel is None:
        return
    pyproject = PROJECT / "pyproject.toml"
    # hatchling fills in {root:uri} where the project is built, so no path of this machine is written down.
    vendored = r'"firstlight[\1] @ {root:uri}/vendor/' + wheel.name + '"'
    text = re.sub(r'"firstlight\[([\w,]+)\][^"]*"', vendored, pyproject.read_text("utf-8"))
    pyproject.write_text(text, "utf-8")


def start_git() -> None:
    """A repository, unless there is one around the project already."""
    if shutil.which("git") is None:
        return
    inside = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], capture_output=True, check=False)
    if inside.returncode != 0:
        subprocess.run(["git", "init", "--quiet"], capture_output=True, check=False)


def say_what_is_next() -> None:
    """Three commands, and no more."""
    print(
        f"\n{ANSWERS['project_name']} is in ./{PROJECT.name}. Next, in a virtual environment:\n"
        f"  cd {PROJECT.name}\n"
        "  python -m pip install -c constraints.txt -e '.[dev]'\n"
        f"  python -m {ANSWERS['package_name']} fit"
    )


if __name__ == "__main__":
    carry_firstlight()
    start_git()
    say_what_is_next()
