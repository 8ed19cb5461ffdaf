"""Under DDP with two gloo processes the ranks agree, and on the right values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from firstlight.modules import SupervisedModule
from firstlight.preflight import PreflightReport
from helpers import classes_data, network, trainer

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "plugins")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "two_processes.py"), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["start", "end", "norms", "rates", "reason", "stopped_epoch", "overfit", "total", "val/loss"]
)
def test_ranks_agree(run, key):
    _, (first, second) = run
    assert first[key] == second[key]


@pytest.mark.slow
def test_what_they_agree_on_is_right(run):
    folder, (first, _) = run
    assert first["reason"] == "PATIENCE_EXHAUSTED"
    assert first["stopped_epoch"] == 1
    assert first["overfit"][0] is True
    assert first["total"] == pytest.approx(first["norms"][-1], rel=1e-6)
    assert len(list(folder.glob("manifest*.json"))) == 1
    asked = PreflightReport.from_json((folder / "preflight.json").read_text(encoding="utf-8"))
    assert not asked.crashed
    assert asked.readings["pair/own"] < 0.5, "asked and answered on rank 0, with two processes up"
    assert (folder / "health.json").is_file()
    module = SupervisedModule.load_from_checkpoint(folder / "end.ckpt", model=network(0.0))
    (alone,) = trainer().validate(module, DataLoader(classes_data(32), batch_size=8), verbose=False)
    assert first["val/loss"] == pytest.approx(alone["val/loss"], rel=1e-5), "one process computes the same value"
