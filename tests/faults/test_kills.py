"""Runs are killed, stopped, cut and starved; what goes on after is held against a run that nothing happened to."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faults._runs import EQUAL, Run, equal, finish, trained
from faults._table import FaultTable
from faults.project import BATCHES, STEPS

from firstlight.recovery import survey_checkpoints

pytestmark = pytest.mark.slow
INTERVAL = 4


def tries(few: int, many: int) -> Any:
    """The first few run by default, the rest with ``make test-faults``."""
    marks = [pytest.mark.faults]
    return pytest.mark.parametrize("seed", [pytest.param(n, marks=marks if n >= few else []) for n in range(many)])


@tries(0, 12)
def test_sigkill_at_a_random_moment(run, unbroken, fault_table: FaultTable, seed):
    with run.attempt() as first:
        first.wait_for(lambda: first.steps)
        time.sleep(random.Random(seed).uniform(0, 0.8))
        os.kill(first.pid, signal.SIGKILL)
    assert first.code == -signal.SIGKILL
    taken = first.steps[-1]
    lost = taken - finish(run, unbroken).resumed_from
    assert -1 <= lost <= INTERVAL, "a step is saved before it is written down"
    fault_table.add("SIGKILL at a random moment", EQUAL, max(lost, 0))


@tries(1, 12)
def test_sigkill_while_a_checkpoint_is_written(run, unbroken, fault_table: FaultTable, seed):
    chance = random.Random(seed)
    wanted = chance.randint(0, 8)  # files that are done before the one that is hit
    with run.attempt("--model.megabytes=64") as first:
        first.wait_for(lambda: len(list(run.root.glob("runs/*/*/checkpoints/*.ckpt"))) >= wanted)
        first.wait_for(lambda: list(run.root.glob("runs/*/*/checkpoints/.*.part")))
        time.sleep(chance.uniform(0, 0.03))
        os.kill(first.pid, signal.SIGKILL)
    inside = bool(run.parts())
    taken = first.steps[-1] if first.steps else 0
    whole = run.fit("--resume=auto", "--model.megabytes=64")
    assert whole.code == 0, whole.output
    if whole.resumed_from:
        assert not run.parts(), "what the killed process left is removed"
    ended = trained(run.checkpoints / "last.ckpt")
    del ended["state_dict"]["ballast"]
    assert equal(ended, {**unbroken, "state_dict": {k: v for k, v in unbroken["state_dict"].items() if k != "ballast"}})
    lost = taken - whole.resumed_from
    assert lost <= INTERVAL
    where = "while a checkpoint is written" if inside else "at a random moment"
    fault_table.add(f"SIGKILL {where}", EQUAL, max(lost, 0))


@tries(1, 10)
def test_sigterm_at_a_random_moment(run, unbroken, fault_table: FaultTable, seed):
    with run.attempt() as first:
        first.wait_for(lambda: first.steps)
        time.sleep(random.Random(seed).uniform(0, 0.8))
        os.kill(first.pid, signal.SIGTERM)
    if first.code in (0, -signal.SIGTERM):  # the handlers are lifted when the fit is over
        assert first.steps[-1] == STEPS, first.output
        fault_table.add("SIGTERM at a random moment", "came when the last step was done: the run had ended", 0)
        return
    assert first.code == 143, first.output
    assert f"stopped by SIGTERM after step {first.steps[-1]}; --resume auto goes on" in first.output
    lost = first.steps[-1] - finish(run, unbroken).resumed_from
    assert lost == 0
    fault_table.add("SIGTERM at a random moment", EQUAL, lost)


@pytest.mark.faults
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGUSR1", 75)])
def test_other_signals_have_codes_of_their_own(run, unbroken, fault_table: FaultTable, name, code):
    with run.attempt() as first:
        first.wait_for(lambda: len(first.steps) > 4)
        os.kill(first.pid, signal.Signals[name])
    assert first.code == code, first.output
    lost = first.steps[-1] - finish(run, unbroken).resumed_from
    assert lost == 0
    fault_table.add(f"{name}, exit code {code}", EQUAL, lost)


@pytest.mark.faults
def test_the_second_signal_ends_the_run_at_once(run, unbroken, fault_table: FaultTable):
    with run.attempt("--model.pause=20") as first:
        first.wait_for(lambda: first.steps)
        os.kill(first.pid, signal.SIGTERM)
        time.sleep(0.3)
        start = time.monotonic()
        os.kill(first.pid, signal.SIGTERM)
    assert time.monotonic() - start < 5
    assert first.code == -signal.SIGTERM
    assert finish(run, unbroken).resumed_from == 0
    fault_table.add("SIGTERM twice during a long step", "ends at once; resumed: " + EQUAL, 1)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_last_step(run, unbroken, fault_table, number):
    with run.attempt("--data.workers=2", "--model.pause=0.3") as first:
        first.wait_for(lambda: len(first.steps) > 2)
        os.killpg(first.pid, number)
    assert first.code == 128 + number, first.output
    assert survey_checkpoints(run.checkpoints).step == first.steps[-1]
    fault_table.add(f"{number.name} to the group, 2 loader workers", "stops after the step, saved", 0)


@pytest.mark.faults
def test_a_loader_worker_is_killed(run, fault_table: FaultTable, server, tmp_path):
    whole = Run(server, tmp_path / "whole")
    assert whole.fit("--data.workers=2").code == 0
    with run.attempt("--data.workers=2", "--model.pause=0.1", f"--checkpoint.every_n_train_steps={BATCHES}") as first:
        first.wait_for(lambda: len(first.steps) > BATCHES)
        worker = int(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[0])
        os.kill(worker, signal.SIGKILL)
    assert first.code == 1
    assert f"DataLoader worker (pid {worker}) is killed by signal: Killed" in first.output
    done = run.fit("--resume=auto", "--data.workers=2")
    assert done.code == 0, done.output
    assert done.resumed_from == BATCHES
    assert equal(trained(run.checkpoints / "last.ckpt"), trained(whole.checkpoints / "last.ckpt"))
    fault_table.add("a loader worker is killed", EQUAL, first.steps[-1] - BATCHES)


@tries(1, 10)
def test_truncation_at_a_random_length(run, unbroken, fault_table: FaultTable, seed):
    with run.attempt("--trainer.max_epochs=2", "--learning_rate.total_steps=32") as first:
        pass
    assert first.code == 0, first.output
    chance = random.Random(seed)
    last = run.checkpoints / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    for path in run.checkpoints.glob(f"*step={step}.ckpt") if seed % 2 else ():
        path.unlink()  # the newest whole one is older then
    size = last.stat().st_size
    length = 0 if seed == 0 else size - chance.randint(1, 100) if seed < 4 else chance.randrange(size)
    os.truncate(last, length)
    best = survey_checkpoints(run.checkpoints)
    done = finish(run, unbroken, "--learning_rate.total_steps=32")
    assert "last.ckpt: it is " in done.output
    assert (
        done.resumed_from == best.step == (step if seed % 2 == 0 else max(s for s in range(step) if s % INTERVAL == 0))
    )
    fault_table.add("last.ckpt is cut off at a random length", EQUAL, step - done.resumed_from)


@pytest.mark.faults
def test_a_bit_is_flipped(run, unbroken, fault_table: FaultTable):
    assert run.fit("--trainer.max_epochs=2", "--learning_rate.total_steps=32").code == 0
    last = run.checkpoints / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    done = finish(run, unbroken, "--learning_rate.total_steps=32")
    assert "its SHA-256 is not the one that it was sealed with" in done.output
    fault_table.add("a bit of last.ckpt is flipped", EQUAL, 2 * BATCHES - done.resumed_from)
