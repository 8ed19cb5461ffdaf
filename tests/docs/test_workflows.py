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
# Jobs that run none of our code.
MORE_RIGHTS = {"publish": {"id-token": "write"}, "sbom": {"contents": "write"}}


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
        assert rights == MORE_RIGHTS.get(name, {"contents": "read"})
        assert "timeout-minutes" in job


def test_nothing_from_outside_runs_with_our_rights(workflow: Path) -> None:
    assert "pull_request_target" not in workflow.read_text()
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), "an expression in a script is a way in; hand it over in env"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_jobs_that_run_none_of_our_code_can_publish() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert jobs["publish"]["environment"] == "pypi"
    for name in MORE_RIGHTS:
        for step in jobs[name]["steps"]:
            assert "actions/checkout" not in step.get("uses", "")
            assert step.get("run", "gh release upload").startswith("gh release upload")


def test_commands_exist(workflow: Path) -> None:
    for step in steps(workflow):
        for line in step.get("run", "").splitlines():
            first, *rest = line.split()
            if first == "make":
                assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            elif "/" in first:
                assert os.access(ROOT / first, os.X_OK)
