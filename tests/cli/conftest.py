from __future__ import annotations

from pathlib import Path

import pytest
from cli.tiny import DEFAULT, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.write("configs/default.yaml", DEFAULT)
    return made


@pytest.fixture
def refused(project: Project, capsys: pytest.CaptureFixture[str]):
    """Run a command that must fail; return what it said, after the checks that hold for every mistake."""

    def run(*args: str) -> str:
        before = set(project.root.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            project.run(*args)
        said = capsys.readouterr().err
        said = said[said.index("error: ") :]
        assert stopped.value.code == 2
        assert len(said.strip().splitlines()) <= 10
        assert "usage:" not in said
        assert "Traceback" not in said
        assert set(project.root.rglob("*")) == before, "something half-written was left behind"
        return said

    return run
