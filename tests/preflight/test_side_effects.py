"""What a step does beside its loss happens to copies; a check or probe that fails is no finding; time is kept."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from firstlight.checks import CHECKS, Check, Evidence, Finding
from firstlight.preflight import PreflightReport, run_preflight
from helpers import Plain, loader, trainer


def asked(module: Any, **kwargs: Any) -> PreflightReport:
    return run_preflight(module, loader(num_samples=128), trainer=trainer(max_epochs=5), **kwargs)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_copies_are_silent(package, caplog, monkeypatch):
    """Whichever of Lightning's two packages was imported last writes the log lines of both."""
    log = logging.getLogger(f"{package}.utilities.rank_zero")
    monkeypatch.setattr("lightning_utilities.core.rank_zero.log", log)
    monkeypatch.setattr(logging.getLogger(package), "propagate", True)
    caplog.set_level(logging.INFO, package)
    run = trainer(max_epochs=5)
    assert any("GPU available" in line for line in caplog.messages), "the run's own Trainer"
    caplog.clear()
    run_preflight(Plain(), loader(num_samples=128), trainer=run)
    assert caplog.messages == []


class Busy(Plain):
    """A step that does a little of everything."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.calls, self.seen = str(folder), 0, []
        self.register_buffer("count", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls += 1
        self.count += 1
        self.seen.append(random.random() + np.random.rand() + float(torch.rand(())))
        with open("relative.txt", "w") as file:  # noqa: PTH123
            file.write("here")
        Path(self.folder, "absolute.txt").write_text("here")
        with Path(self.folder, "kept.txt").open("a") as file:
            file.write("more")
        torch.save(self.count, Path(self.folder, "saved.pt"))
        torch.save(self.count, "saved.pt")
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({"train/other": loss})
        self.print("said")
        return loss


def test_nothing_of_a_busy_step_reaches_the_run(tmp_path, capsys):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "kept.txt").write_text("old")
    module = Busy(folder)
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    report = asked(module)
    assert (random.getstate(), str(np.random.get_state())) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (module.calls, module.seen, float(module.count)) == (0, [], 0.0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "kept.txt"]
    assert (folder / "kept.txt").read_text() == "old"
    assert capsys.readouterr().out == ""
    assert (report.exit_code, report.crashed) == (0, {})
    assert len(report.skipped) < len(report.results) / 2


def test_files_that_the_step_reads_are_there(tmp_path):
    class Reads(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert Path("weights.txt").read_text() == "1"
            with open("weights.txt") as file:  # noqa: PTH123
                return float(file.read()) * super().training_step(batch, batch_idx)

    Path("weights.txt").write_text("1")
    assert asked(Reads()).exit_code == 0


def test_a_list_that_the_module_does_not_hold_cannot_be_isolated():
    """A closure or global is shared with the copies: nothing copies it. What the module holds itself is copied."""
    outside: list[int] = []

    class Appends(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            outside.append(batch_idx)
            return super().training_step(batch, batch_idx)

    assert asked(Appends()).exit_code == 0
    assert outside


def test_a_step_that_raises_is_a_reason_and_not_a_crash():
    class Raises(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise ZeroDivisionError("of the user's")

    report = asked(Raises())
    assert report.findings == []
    assert report.crashed == {}
    assert report.skipped["FL301"] == "the step raised ZeroDivisionError: of the user's"
    assert "ZeroDivisionError: of the user's" in report.skipped["FL601"]
    assert next(r.status for r in report.results if r.code == "FL101") == "passed", "the data can be read all the same"


@pytest.mark.parametrize("hook", ["configure_optimizers", "on_train_start", "on_fit_start", "on_after_backward"])
def test_a_hook_that_raises_is_a_reason_and_not_a_crash(hook):
    def fails(self: Any) -> Any:
        raise LookupError("no such key\nsecond line")

    report = asked(type("Raises", (Plain,), {hook: fails})())
    assert report.crashed == {}
    assert "LookupError: no such key" in report.skipped["FL601"]
    assert "second line" not in report.skipped["FL601"]


class Crashes(Check):
    """A check with a fault of its own."""

    code, name, title, rank = "FL699", "crashes", "crashes", 1
    needs = ("data/nonfinite",)

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        raise KeyError("inputs/nowhere")


def test_a_check_that_fails_is_no_finding():
    (nonfinite,) = (check for check in CHECKS if check.code == "FL101")
    report = asked(Plain(), checks=[nonfinite, Crashes()])
    assert [result.status for result in report.results] == ["passed", "crashed"]
    assert report.findings == []
    assert report.exit_code == 3
    (_, told) = json.loads(report.to_json())["results"]
    assert told["status"] == "crashed"
    assert "KeyError: 'inputs/nowhere'" in told["traceback"]


def test_a_find_that_fails_half_way_takes_its_findings_back(monkeypatch):
    (nonfinite,) = (check for check in CHECKS if check.code == "FL101")

    def find(self: Check, evidence: Evidence) -> Iterable[Finding]:
        yield from original(self, evidence | {"data/nonfinite": 3})
        raise RuntimeError("half way")

    original = type(nonfinite).find
    monkeypatch.setattr(type(nonfinite), "find", find)
    report = asked(Plain(), checks=[nonfinite])
    assert (report.exit_code, report.findings) == (3, [])


def test_a_probe_that_fails_is_a_crash_of_its_checks_and_of_no_other(monkeypatch):
    def fails(*args: Any) -> None:
        raise AttributeError("of the probe")

    monkeypatch.setattr("firstlight.preflight._run.probe_network", fails)
    report = asked(Plain())
    assert set(report.crashed) == {"FL113", "FL205", "FL206", "FL207", "FL208", "FL209", "FL210", "FL309"}
    assert all("AttributeError: of the probe" in text for text in report.crashed.values())
    assert (report.exit_code, report.findings) == (3, [])
    assert {"FL301", "FL601"}.isdisjoint(report.crashed)


def test_a_spent_budget_is_told_with_what_was_left_out():
    report = asked(Plain(), budget_seconds=1e-9)
    assert report.over_budget
    assert report.exit_code == 4
    assert report.findings == []
    reasons = {code: reason for code, reason in report.skipped.items() if code not in ("FL109", "FL110")}
    assert set(reasons.values()) == {"the budget of time is spent"}
    assert report.skipped["FL109"] == "there is no validation data"
    assert set(report.skipped) == {check.code for check in CHECKS}


def test_a_budget_spent_half_way_stops_the_trainings():
    class Slow(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss - loss.detach() + 1.0  # never learnt

    report = asked(Slow(), budget_seconds=2.0)
    assert report.seconds < 4.0


def test_the_budget_must_be_something():
    with pytest.raises(ValueError, match="budget_seconds"):
        asked(Plain(), budget_seconds=0)


def test_the_folder_of_the_process_stays(tmp_path):
    class Moves(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            os.chdir("/")
            return super().training_step(batch, batch_idx)

    asked(Moves())
    assert Path.cwd() == tmp_path
