"""A signal ends the run after the step, saved, with its own code; what comes after a resume is what would have come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from firstlight.callbacks import EarlyStopping, LearningRateScheduler, WeightEMA
from firstlight.recovery import GracefulStop, VerifiedCheckpointIO
from firstlight.schedules import WarmupCosine
from helpers import ResumableLoader, fit, loader, network, same, supervised, weights

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
TESTS = Path(__file__).parents[1]


class FixedOrder(ResumableLoader):
    """The same order in every epoch: Lightning gives a loader its state back within an epoch alone."""

    epoch = property(lambda self: 0, lambda self, value: None)


class Sends(Callback):
    """Sends a signal to this process, once, in a training or a validation batch."""

    def __init__(self, step: int, where: str = "train", number: int = signal.SIGTERM) -> None:
        self.step, self.where, self.number = step, where, number

    def _send(self, trainer: Any, here: str) -> None:
        if here == self.where and trainer.fit_loop.total_batch_idx == self.step and not trainer.sanity_checking:
            self.where = "sent"
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._send(trainer, "train")

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        self._send(trainer, "validation")


class Validations(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.seen.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


def attempt(folder: Path, *callbacks: Any, ckpt: Any = None, **settings: Any) -> tuple[Any, list[Any], int | None, Any]:
    """Train three epochs of five batches; return module, validations, exit code and the stop."""
    torch.manual_seed(1)
    module, seen, stop = supervised(model=network(0.0)), Validations(), GracefulStop()
    others = [
        stop,  # first: it must come last nevertheless
        *callbacks,
        seen,
        WeightEMA(0.9),
        LearningRateScheduler(WarmupCosine(0.2)),
        ModelCheckpoint(folder, monitor="val/loss", save_last=True),
        EarlyStopping("val/loss", patience=9),
    ]
    settings = {"max_epochs": 3, "plugins": [VerifiedCheckpointIO()], "enable_checkpointing": True} | settings
    code = None
    try:
        fit(module, *others, data=FixedOrder(), val=loader(shuffle=False), ckpt=ckpt, **settings)
    except SystemExit as end:
        code = int(end.code or 0)
    return module, seen.seen, code, stop


SETTINGS = [
    {},
    {"accumulate_grad_batches": 2},
    {"val_check_interval": 2},
    {"val_check_interval": 3, "accumulate_grad_batches": 2},
    {"check_val_every_n_epoch": 2},
    {"max_epochs": -1, "max_steps": 15},
]


@pytest.mark.parametrize("where", ["train", "validation"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_stopped_and_resumed_is_unbroken(tmp_path, settings, where):
    whole, validations, code, _ = attempt(tmp_path / "whole", **settings)
    assert code is None
    stopped = 0
    for step in (2, 4, 5):  # batches; 4 is the last of an epoch
        folder = tmp_path / f"{where}-{step}"
        _, before, code, stop = attempt(folder, Sends(step, where), **settings)
        if code is None:
            assert where == "validation", "no validation follows this batch"
            continue
        stopped += 1
        assert (code, stop.stopped_by) == (143, "SIGTERM")
        module, after, code, _ = attempt(folder, ckpt=folder / "last.ckpt", **settings)
        assert code is None
        assert same(weights(whole), weights(module)), step
        assert before + after == validations, step
    assert stopped == 3 or where == "validation"


def test_a_kill_during_the_validation_that_a_stop_waits_for_loses_no_step(tmp_path):
    class Copies(Callback):
        def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 5:
                (tmp_path / "then.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes())

    whole, validations, *_ = attempt(tmp_path / "whole")
    attempt(tmp_path, Sends(4), Copies())
    module, after, *_ = attempt(tmp_path, ckpt=tmp_path / "then.ckpt")
    assert same(weights(whole), weights(module))
    assert after == validations[1:], "the validation that was cut short is the only loss"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 75), ("SIGUSR2", 75)])
def test_codes(tmp_path, name, code):
    stop = GracefulStop(signals=["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"], dirpath=str(tmp_path))
    with pytest.raises(SystemExit) as end:
        fit(supervised(), Sends(2, number=signal.Signals[name]), stop)
    assert end.value.code == code
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_time_limit(tmp_path):
    stop = GracefulStop(max_time=1e-6, requeue_code=99, dirpath=str(tmp_path))
    with pytest.raises(SystemExit) as end:
        fit(supervised(), stop)
    assert end.value.code == 99
    assert stop.stopped_by == "the time limit"
    fit(supervised(), GracefulStop(max_time="00:01:00:00", dirpath=str(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"max_time": "1h"}, "max_time must be seconds above zero, or DD:HH:MM:SS; got '1h'"),
        ({"max_time": -1.0}, "max_time must be seconds above zero"),
        ({"max_time": float("nan")}, "max_time must be seconds above zero"),
        ({"signals": ["SIGKILL"]}, "signals must be among SIGTERM, SIGINT"),
        ({"requeue_code": 256}, "requeue_code must be from 1 to 255"),
    ],
)
def test_refused(arguments, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        GracefulStop(**arguments)


def test_handlers_are_put_back(tmp_path):
    heeded = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    called: list[int] = []
    before = {one: signal.getsignal(one) for one in heeded}
    signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    mine = {one: signal.getsignal(one) for one in heeded}
    try:
        fit(supervised(), GracefulStop(dirpath=str(tmp_path)))
        assert {one: signal.getsignal(one) for one in heeded} == mine
        with pytest.raises(SystemExit):
            fit(supervised(), Sends(1), GracefulStop(dirpath=str(tmp_path)))
        assert {one: signal.getsignal(one) for one in heeded} == mine
        assert not called
        with pytest.raises(SystemExit):
            fit(supervised(), Sends(1, number=signal.SIGUSR1), GracefulStop(dirpath=str(tmp_path)))
        assert called == [signal.SIGUSR1], "whoever listened before hears of it, after the save"
        assert {one: signal.getsignal(one) for one in heeded} == mine
    finally:
        signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])


def test_outside_of_the_main_thread_there_are_no_signals_but_the_clock(tmp_path):
    codes = []

    def run() -> None:
        with pytest.raises(SystemExit) as end:
            fit(supervised(), GracefulStop(max_time=1e-6, dirpath=str(tmp_path)))
        codes.append(end.value.code)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert codes == [75]
    assert signal.getsignal(signal.SIGTERM) == before


def test_with_nowhere_to_save_it_says_so():
    with pytest.warns(UserWarning, match="nowhere to save: give it a dirpath"), pytest.raises(SystemExit) as end:
        fit(supervised(), Sends(1), GracefulStop())
    assert end.value.code == 143


def test_a_signal_in_the_sanity_check_ends_the_run_before_its_first_step(tmp_path):
    class Early(Callback):
        def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    stop = GracefulStop(dirpath=str(tmp_path))
    with pytest.raises(SystemExit) as end:
        fit(supervised(), stop, Early(), val=loader(shuffle=False), num_sanity_val_steps=1)
    assert end.value.code == 143
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1])
def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(tmp_path, rank):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'plugins'}", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("two_processes_stop.py")
    process = subprocess.Popen([sys.executable, "-W", "ignore", str(script), str(tmp_path)], env=environment)
    try:
        end = time.monotonic() + 240
        while not (tmp_path / f"training-{rank}").exists():
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(int((tmp_path / f"training-{rank}").read_text()), signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
        process.wait()
    ended = [(tmp_path / f"ended-{one}").read_text().split() for one in (0, 1)]
    assert ended[0] == ended[1], "code and step"
    assert ended[0][0] == "143"
    assert str(torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]) == ended[0][1]
