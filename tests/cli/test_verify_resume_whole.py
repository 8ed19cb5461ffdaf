"""``verify-resume`` from a shell: a new interpreter in it, two ranks, ended by a signal, in a generated project."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from template.conftest import bake  # noqa: F401  a fixture

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path):
    """Start a program with words in a project; what it leaves in the temporary folder is looked at."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    paths = [str(ROOT / name) for name in ("plugins", "tests")]

    def run(project, *words, program="cli.tiny"):
        more = {"PYTHONPATH": os.pathsep.join([*paths, str(project / "src")]), "TMPDIR": str(temporary)}
        return subprocess.Popen(
            [sys.executable, "-m", program, "verify-resume", *words],
            cwd=project,
            env={**os.environ, "OMP_NUM_THREADS": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    yield run
    assert list(temporary.glob("firstlight-*")) == []


def ended(process):
    said = process.communicate(timeout=300)[0]
    return process.returncode, said


def test_two_ranks_are_compared(start, project):
    words = ("--trainer.devices=2", "--trainer.strategy=ddp", "--steps=3")
    code, said = ended(start(project.root, *words))
    assert (code, "exact: " in said) == (0, True), said
    assert project.runs == []
    code, said = ended(start(project.root, *words, "--stop_at=1", "--exact_resume=null"))
    assert (code, "rank 0: " in said) == (1, True), said


def test_the_order_of_a_set_is_found(start, project):
    """Forks share the seed of hashes, so that one training has to begin with the interpreter."""
    code, said = ended(start(project.root, "--steps=3", program="cli.verified_program"))
    assert code == 1, said
    assert "not comparable" in said
    assert "the order of a set" in said


def test_a_signal_leaves_nothing_behind(start, project, tmp_path):
    process = start(project.root, "--steps=2000", "--trainer.max_epochs=1000")
    until = time.monotonic() + 120
    while not list((tmp_path / "temporary").glob("firstlight-*/unbroken.txt")):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert project.runs == []


def test_a_generated_project_is_exact(start, bake):  # noqa: F811
    project = bake()
    code, said = ended(start(project, program="first_light"))
    assert code == 0, said
    assert said.count("equal") == 20
    assert not (project / "runs").exists()
