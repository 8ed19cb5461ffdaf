"""The laws of our own continuous integration: nothing that can be swapped under us, and no right that is not used."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> Path:
    return request.param


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


def test_there_are_workflows() -> None:
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "release.yml"}


def test_actions_are_pinned_by_commit(workflow: Path) -> None:
    for line in re.findall(r"uses: (.*)", workflow.read_text()):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_rights_are_given_job_by_job(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text())
    assert content["permissions"] == {}
    for name, job in content["jobs"].items():
        rights = job["permissions"]
        assert rights == ({"id-token": "write"} if name == "publish" else {"contents": "read"})
        assert "timeout-minutes" in job


def test_nothing_from_outside_runs_with_our_rights(workflow: Path) -> None:
    assert "pull_request_target" not in workflow.read_text()
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), "an expression in a script is a way in; hand it over in env"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_the_job_that_runs_none_of_our_code_can_publish() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]["publish"]
    assert job["environment"] == "pypi"
    assert all("run" not in step for step in job["steps"])


def test_commands_exist(workflow: Path) -> None:
    for step in steps(workflow):
        for line in step.get("run", "").splitlines():
            first, *rest = line.split()
            if first == "make":
                assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            elif "/" in first:
                assert os.access(ROOT / first, os.X_OK)
