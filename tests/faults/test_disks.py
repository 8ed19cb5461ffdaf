"""Disks that are full, and folders that cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults._runs import EQUAL, Run, finish
from faults._table import FaultTable

from firstlight.recovery import verify_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.faults]
MEGABYTE = 1 << 20


def told(output: str) -> str:
    """Return the error that was told, after the rules for all errors."""
    said = output[output.index("error: ") :].strip()
    assert len(said.splitlines()) <= 10
    assert "Traceback" not in output
    return said


def nothing_lost(run: Run) -> None:
    assert not run.parts(), "what could not be written whole is taken away"
    for path in run.checkpoints.glob("*.ckpt"):
        verify_checkpoint(path)


@pytest.fixture
def small_disk(run: Run) -> Iterator[Path]:
    """A disk of 40 MB under the run; a checkpoint takes 8."""
    place = run.root / "runs"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here; test_a_quota_of_our_own stands for this one")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(run: Run, small_disk: Path, unbroken: Any, fault_table: FaultTable):
    first = run.fit()
    assert first.code == 74, first.output
    said = told(first.output)
    assert "No space left on device (" in said
    assert "the last good checkpoint is " in said
    assert "make room, or give another folder" in said
    nothing_lost(run)
    again = run.fit("--resume=auto")
    assert again.code == 74, "as full as before, and nothing is lost by trying"
    nothing_lost(run)
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    lost = first.steps[-1] - finish(run, unbroken).resumed_from
    assert -1 <= lost <= 4, "a step is saved before it is written down"
    fault_table.add("disk full (tmpfs of 40 MB)", "exit 74, one error; resumed: " + EQUAL, max(lost, 0))


def test_a_quota_of_our_own(run: Run, unbroken: Any, fault_table: FaultTable):
    whole = run.fit("--trainer.max_epochs=1", "--learning_rate.total_steps=32")
    assert whole.code == 0
    first = run.fit("--resume=auto", "--learning_rate.total_steps=32", largest_file=4 * MEGABYTE)
    assert first.code == 74, first.output
    assert "File too large" in told(first.output)
    nothing_lost(run)
    done = finish(run, unbroken, "--learning_rate.total_steps=32")
    assert done.resumed_from == 8
    fault_table.add("files cannot grow (RLIMIT_FSIZE)", "exit 74, one error; resumed: " + EQUAL, 4)


@pytest.fixture
def frozen() -> Iterator[Any]:
    """Takes away the right to write into a folder, from root too."""
    taken: list[Path] = []

    def freeze(folder: Path) -> None:
        if os.geteuid() == 0:
            if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", folder], check=False).returncode:
                pytest.skip("root writes into every folder here: no chattr +i on this file system")
        else:
            folder.chmod(0o555)
        taken.append(folder)

    def thaw() -> None:
        for folder in taken:
            if os.geteuid() == 0:
                subprocess.run(["chattr", "-i", folder], check=True)
            else:
                folder.chmod(0o755)
        taken.clear()

    freeze.thaw = thaw  # type: ignore[attr-defined]
    yield freeze
    thaw()


def test_a_folder_that_is_read_only_from_the_start(run: Run, frozen: Any, fault_table: FaultTable):
    folder = run.root / "elsewhere"
    folder.mkdir()
    frozen(folder)
    first = run.fit(f"--checkpoint.dirpath={folder}")
    assert first.code == 74, first.output
    assert "cannot write checkpoints into" in told(first.output)
    assert first.steps == [], "refused before the first step"
    fault_table.add("read-only folder from the start", "exit 74 before the first step", 0)


def test_a_folder_that_becomes_read_only(run: Run, frozen: Any, unbroken: Any, fault_table: FaultTable):
    with run.attempt("--model.pause=0.1") as first:
        first.wait_for(lambda: 8 in first.steps and not run.parts() and (run.checkpoints / "last.ckpt").exists())
        frozen(run.checkpoints)
    assert first.code == 74, first.output
    assert "the last good checkpoint is " in told(first.output)
    frozen.thaw()
    nothing_lost(run)
    lost = first.steps[-1] - finish(run, unbroken).resumed_from
    assert 0 <= lost <= 4
    fault_table.add("the folder becomes read-only", "exit 74, one error; resumed: " + EQUAL, lost)
