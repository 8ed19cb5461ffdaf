"""metrics.csv: no row twice after a resume, none lost on a disk that was full for a while."""

from __future__ import annotations

import csv
import resource
from pathlib import Path

import pytest

from firstlight.cli._csv_logger import RunCSVLogger
from firstlight.tracking import read_metrics


def cells(file: Path) -> list[tuple[int, str]]:
    """Return the step and key of each value."""
    with file.open(newline="") as lines:
        return [
            (int(row["step"]), key) for row in csv.DictReader(lines) for key in row if row[key] and "/" in key
        ]  # fmt: skip


def test_a_resume_from_before_the_end_replaces_the_rows_that_come_again(project):
    project.run("fit", "--checkpoint.save_top_k=-1", "--trainer.max_epochs=3")
    (run,) = project.runs
    before = (run / "metrics.csv").read_bytes()
    values = read_metrics(run)["val/loss"]
    first = min((run / "checkpoints").glob("epoch=0*.ckpt"))
    project.run("fit", f"--resume={first}", "--trainer.max_epochs=3")
    assert project.runs == [run]
    found = cells(run / "metrics.csv")
    assert len(found) == len(set(found))
    assert read_metrics(run)["val/loss"][0] == values[0] == [3, 7, 11]
    assert read_metrics(run)["val/loss"][1][0] == values[1][0], "what was before the checkpoint stays"
    assert (run / "metrics.1.csv").read_bytes() == before, "and nothing is thrown away"


def log(logger: RunCSVLogger, *rows: tuple[int, str, float]) -> None:
    for step, key, value in rows:
        logger.log_metrics({key: value}, step)
    logger.save()


def test_rows_of_the_step_that_it_goes_on_with_are_told_apart_by_their_keys(tmp_path):
    """Saved between the training row and the validation row of a step, and killed two steps later."""
    log(
        RunCSVLogger(tmp_path),
        (1, "train/loss", 1.0),
        (3, "train/loss", 2.0),
        (3, "val/loss", 3.0),
        (5, "train/loss", 4.0),
    )
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("7,8.")  # cut by the kill
    again = RunCSVLogger(tmp_path, resumes=True)
    log(again, (3, "val/loss", 30.0))
    log(again, (3, "other/x", 5.0), (3, "other/x", 6.0))
    log(again, (5, "train/loss", 40.0), (7, "new/y", 1.0))
    assert read_metrics(tmp_path) == {
        "train/loss": ([1, 3, 5], [1.0, 2.0, 40.0]),
        "val/loss": ([3], [30.0]),
        "other/x": ([3, 3], [5.0, 6.0]),
        "new/y": ([7], [1.0]),
    }
    assert read_metrics(tmp_path / "metrics.1.csv")["train/loss"] == ([1, 3, 5], [1.0, 2.0, 4.0])
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "metrics.1.csv"}


def test_without_a_resume_all_rows_stay(tmp_path):
    for value in (1.0, 2.0):
        log(RunCSVLogger(tmp_path), (3, "val/loss", value))
    assert read_metrics(tmp_path) == {"val/loss": ([3, 3], [1.0, 2.0])}


@pytest.mark.parametrize("key", ["a", "new"], ids=["appended", "with another column"])
def test_rows_wait_for_a_full_disk(tmp_path, key):
    logger = RunCSVLogger(tmp_path)
    log(logger, *[(step, "a", float(step)) for step in range(20)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.csv").stat().st_size + 20, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"metrics.csv cannot be written \(File too large\)") as told:
            log(logger, *[(step, key, float(step)) for step in range(20, 40)])
        logger.save()
        assert len(told) == 1
        assert read_metrics(tmp_path)["a"][0] == list(range(20)), "what was there is whole"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.finalize("success")
    found = read_metrics(tmp_path)
    assert found["a"][0] + (found["new"][0] if key == "new" else []) == list(range(40))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
