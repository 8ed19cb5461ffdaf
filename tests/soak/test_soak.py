"""A long run with all callbacks on: nothing grows but the log, and that by the step.

``make soak`` runs 200,000 steps (``make soak STEPS=30000`` fewer) and prints what it measured.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contracts.test_roles import CASES
from lightning.pytorch import Callback
from torch import nn

from firstlight.callbacks import BatchMixing, EarlyStopping, GeneratedSamples, TokenWeightedAccumulation
from firstlight.cli._csv_logger import RunCSVLogger
from helpers import fit, loader, supervised

STEPS = int(os.environ.get("STEPS") or 200_000)
EVERYONE: dict[type[Callback], dict[str, Any]] = CASES | {
    EarlyStopping: {"monitor": "val/loss", "patience": 10**9},
    TokenWeightedAccumulation: {"count": lambda batch: len(batch[1])},  # mixed targets have no class to count by
}
del EVERYONE[GeneratedSamples]  # of models that draw images
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux tells what a process holds")


@dataclass(frozen=True)
class Vitals:
    step: int
    resident: int  # bytes
    handles: int
    threads: int
    hooks: int
    log: int  # bytes


def hooks_of(module: nn.Module) -> int:
    """Count the hooks on layers and on parameters, forward and backward."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    on_layers = sum(len(getattr(layer, kind) or ()) for layer in module.modules() for kind in kinds)
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return on_layers + sum(len(getattr(p, kind, None) or ()) for p in module.parameters() for kind in kinds)


class Nurse(Callback):
    """Writes down the vitals every so many steps, always at the same place of an epoch."""

    def __init__(self, every: int, csv: Path) -> None:
        self.every, self.csv = every, csv
        self.seen: list[Vitals] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step:
            trainer.logger.save()  # it writes by the clock
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen.append(
                Vitals(
                    trainer.global_step,
                    pages * os.sysconf("SC_PAGE_SIZE"),
                    len(list(Path("/proc/self/fd").iterdir())),
                    threading.active_count(),
                    hooks_of(pl_module),
                    self.csv.stat().st_size,
                )
            )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """A progress bar of an hour is nobody's to read."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        yield


def soak(folder: Path, steps: int, every: int, callbacks: dict[type[Callback], dict[str, Any]]) -> list[Vitals]:
    nurse = Nurse(every, folder / "metrics.csv")
    made = [callback(**arguments) for callback, arguments in callbacks.items()]
    settings = {"max_steps": steps, "max_epochs": -1, "log_every_n_steps": 10, "enable_progress_bar": True}
    with silence():
        fit(
            supervised(),
            *made,
            nurse,
            data=loader(num_samples=400),  # 50 steps an epoch
            val=loader(num_samples=16, shuffle=False),
            logger=RunCSVLogger(folder),
            default_root_dir=folder,
            **settings,
        )
    return nurse.seen


def slope(seen: list[Vitals]) -> float:
    """Return the bytes of the log by step."""
    return statistics.linear_regression([one.step for one in seen], [one.log for one in seen]).slope


def constant(seen: list[Vitals]) -> None:
    for name in ("handles", "threads", "hooks"):
        assert len({getattr(one, name) for one in seen}) == 1, (name, [getattr(one, name) for one in seen])


def test_everyone_is_there() -> None:
    assert set(EVERYONE) == set(CASES) - {GeneratedSamples}
    assert BatchMixing in EVERYONE


def test_a_short_run_gains_no_handle_thread_or_hook(tmp_path: Path) -> None:
    quick = {kind: given for kind, given in EVERYONE.items() if kind.role != "probe"}
    seen = soak(tmp_path, 400, 50, quick)
    assert len(seen) == 7
    constant(seen)
    assert slope(seen[4:]) == pytest.approx(slope(seen[1:4]), rel=0.1)


def test_what_grows_is_seen() -> None:
    layer = nn.Linear(2, 2)
    before = hooks_of(layer)
    layer.register_forward_hook(lambda *_: None)
    layer.weight.register_hook(lambda gradient: gradient)
    layer.bias.register_post_accumulate_grad_hook(lambda parameter: None)
    assert hooks_of(layer) == before + 3


@pytest.mark.soak
def test_a_long_run_grows_by_its_log_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = max(50, STEPS // 100 // 50 * 50)
    seen = soak(tmp_path, STEPS, every, EVERYONE)
    assert seen[-1].step >= STEPS - every, "it ended early"
    warm = seen[len(seen) // 5 :]
    resident = [one.resident for one in warm]
    halves = slope(warm[: len(warm) // 2]), slope(warm[len(warm) // 2 :])
    with capsys.disabled():
        print(f"\nsteps {warm[0].step} to {warm[-1].step} of {STEPS}, {len(warm)} readings")
        print(f"resident  {resident[0] / 2**20:.1f} MiB, then {min(resident) / resident[0]:.4f} to "
              f"{max(resident) / resident[0]:.4f} of it")  # fmt: skip
        print(f"handles   {warm[0].handles}   threads {warm[0].threads}   hooks {warm[0].hooks}")
        print(f"log       {slope(warm):.1f} bytes a step; by halves {halves[0]:.1f} and {halves[1]:.1f}")
    constant(warm)
    assert max(resident) <= 1.02 * resident[0]
    assert halves[0] == pytest.approx(halves[1], rel=0.02)
