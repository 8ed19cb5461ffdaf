"""Under FSDP2 (two gloo processes) norms are those of the whole model, and clipping reaches the stated value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
def test_norms_are_whole_and_clipping_reaches_its_value(tmp_path):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "plugins")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "two_shards.py"), str(tmp_path)]
    settings = {"capture_output": True, "text": True, "timeout": 120, "check": False, "cwd": tmp_path}
    done = subprocess.run(command, env=environment, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["overfit"] == "ModelParallelStrategy shards the model, and a shard cannot be copied"
    assert first["after"] == pytest.approx([0.05] * len(first["after"]), rel=1e-4)
    for row in first["logged"]:
        assert row["grad/clipped_norm"] == pytest.approx(0.05, rel=1e-4)
        blocks = [value for key, value in row.items() if key.startswith("grad/norm/net.")]
        assert row["grad/norm/total"] == pytest.approx(sum(norm**2 for norm in blocks) ** 0.5, rel=1e-5)
        assert row["grad/norm/total"] > 0.05
        assert row["grad/clip_rate"] == 1.0
