"""The attempts of one run in W&B."""

from __future__ import annotations

import os
from typing import Any

import pytest
from faults._runs import EQUAL, Run, finish
from faults._table import FaultTable

from firstlight.tracking import read_offline_run

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.parametrize("number", [15, 9])
def test_attempts_are_one_group_in_wandb_and_their_steps_do_not_collide(
    run: Run, unbroken: Any, fault_table: FaultTable, number: int
):
    pytest.importorskip("wandb")
    with run.attempt("--wandb={}") as first:
        first.wait_for(lambda: len(first.steps) > 9)
        os.kill(first.pid, number)
    done = finish(run, unbroken, "--wandb={}")
    attempts = [read_offline_run(path) for path in sorted(run.folder.glob("wandb/offline-run-*"))]
    assert len(attempts) == 2
    assert len({one.path.name for one in attempts}) == 2, "a run of its own: W&B's own count of steps cannot collide"
    written = [one for one in attempts if one.job_type]  # W&B writes every 15 seconds: a kill before leaves nothing
    assert {one.group for one in written} == {run.folder.name}
    assert [one.job_type for one in written] == ["fit", "resume-1"][-len(written) :]
    assert attempts[1] in written
    assert attempts[1].config["resumed_from_step"] == done.resumed_from
    before, after = ([step for step, _ in zip(*one.series("train/loss"), strict=True)] for one in attempts)
    if number == 15:
        assert attempts[0] in written
        assert before + after == list(range(32)), "each step once"
    assert after == list(range(done.resumed_from, 32))
    name = "SIGTERM" if number == 15 else "SIGKILL"
    fault_table.add(
        f"{name}, with W&B offline", "two attempts in one group; " + EQUAL, len(first.steps) - done.resumed_from
    )
