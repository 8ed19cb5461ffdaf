"""A rank is lost: all end, within the time that is stated, and one message names it. Real processes, gloo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from firstlight.recovery import RankWatch
from helpers import same

ROOT = Path(__file__).parents[2]
START = 90  # seconds that two processes may need to import and to find each other, on a machine that is busy


def environment():
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def launched(folder, fault, *, restarts=0):
    """Run two ranks under torchrun; return the exit code and what was said."""
    program = str(Path(__file__).with_name("lost_rank.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--max_restarts={restarts}", program, str(folder), fault]
    began = time.monotonic()
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=START + 120 * (restarts + 1)
    )
    return done.returncode, done.stderr, time.monotonic() - began


KILLED = r"rank +: 1 \(local_rank: 1\)\s+exitcode +: -9"

# fault: what the message says, and which rank writes it
LOST = {
    # torchrun sees the death of its own child at once, and says so
    "killed before": KILLED,
    "killed between": KILLED,
    "killed while saving": KILLED,
    "stopped": r"rank 1 of 2 .* has died or is stopped: no sign of life",
    "hangs": r"rank 1 of 2 .* hangs for [6-9] s at batch 3 .*lost_rank.py:\d+, _happen; rank 0 waits at",
    "raises": r"rank 1 of 2 .* ended at batch 3 .* by ValueError: the label 17 is out of range in .*lost_rank.py:\d+",
    "fewer batches": r"the number of training batches must be the same on all ranks; got 'rank 0 has 12, rank 1",
}


@pytest.mark.faults
@pytest.mark.parametrize("fault", LOST)
def test_all_end_and_the_lost_rank_is_named(fault, tmp_path, fault_table):
    code, said, seconds = launched(tmp_path, fault)
    assert code == 1  # torchrun's own
    assert re.search(LOST[fault], said), said[-3000:]
    if fault in ("stopped", "hangs", "raises"):
        assert said.count("firstlight: rank") == 1, said[-3000:]
    assert seconds < START
    assert not list(tmp_path.glob("end*"))
    fault_table.add(f"rank of two {fault}", "all ranks end, the rank is named", 0)


def test_arguments():
    with pytest.raises(ValueError, match="timeout must be above zero"):
        RankWatch(0)
    with pytest.raises(ValueError, match="dead_after must be 3 seconds or more"):
        RankWatch(dead_after=1)


@pytest.mark.faults
def test_torchrun_restarts_and_the_run_is_the_unbroken_one(tmp_path, fault_table):
    """Rank 1 is killed in its fourth step; the restarted ranks go on from the last checkpoint, bit for bit."""
    folders = tmp_path / "whole", tmp_path / "broken"
    for folder, fault in zip(folders, ("none", "killed before"), strict=True):
        folder.mkdir()
        code, said, _ = launched(folder, fault, restarts=4)  # a restart may fail to connect
        assert code == 0, said[-3000:]
    whole, broken = (torch.load(folder / "end0.pt", weights_only=True) for folder in folders)
    assert same(whole, broken)
    fault_table.add("rank of two killed, torchrun restarts", "the unbroken run, bit for bit", 0)
