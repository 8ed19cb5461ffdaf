"""The diagnosis benchmark counts what is right as right and what is wrong as wrong."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from lightning.pytorch import seed_everything

from benchmark import CASES
from helpers import same, trainer, weights

ROOT = Path(__file__).parents[2]
FAULT: dict[str, Any] = {"part": "preflight", "case": "D06", "buggy": True, "seed": 11, "seconds": 1.0, "warnings": []}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("diagnosis")


@pytest.fixture
def tables(script: Any) -> Any:
    return importlib.import_module("_diagnosis_tables")


@pytest.fixture
def rivals(script: Any) -> Any:
    return importlib.import_module("_diagnosis_rivals")


def cells(markdown: str, start: str) -> list[str]:
    """Return the cells of the row that begins with ``start``."""
    (row,) = (line for line in markdown.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.slow
def test_the_script_runs_two_cases():
    paths = os.pathsep.join(map(str, (ROOT / "plugins", ROOT / "tests")))
    command = [sys.executable, "benchmarks/diagnosis.py", "--cases", "D04,G01", "--seeds", "11", "--parts", "preflight"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("preflight")]
    assert [line.split(" ok ")[1].split()[0] for line in lines] == ["nonfinite_data", "silent", "silent"]
    row = cells(done.stdout, "**firstlight")
    assert row[3].startswith("1 of 1")
    assert row[6].startswith("0 of 2")


def test_the_right_cause_counts(tables: Any):
    outcomes = tables.Outcomes([FAULT | {"errors": ["constant_output", "zero_gradient"], "root": "constant_output"}])
    assert [cell[:6] for cell in cells(outcomes.totals(), "**firstlight")[1:5]] == ["1 of 1"] * 4
    assert cells(outcomes.faults(), "D06")[3:5] == ["constant_output 1x", "zero_gradient"]


def test_a_wrong_cause_shows_as_wrong(script: Any, tables: Any):
    record = FAULT | {"errors": ["lr_too_low", "constant_output"], "root": "lr_too_low"}
    assert " x  lr_too_low constant_output" in script.line(record)
    outcomes = tables.Outcomes([record])
    assert [cell[:6] for cell in cells(outcomes.totals(), "**firstlight")[1:5]] == [
        "1 of 1",
        "1 of 1",
        "0 of 1",
        "1 of 1",
    ]
    assert cells(outcomes.faults(), "D06")[3] == "**wrong:** lr_too_low 1x"


def test_silence_on_a_fault_shows_as_wrong(script: Any, tables: Any):
    record = FAULT | {"errors": [], "root": None}
    assert " x  silent" in script.line(record)
    assert cells(tables.Outcomes([record]).faults(), "D06")[3] == "**wrong:** nothing 1x"


def test_an_alarm_without_a_fault_shows(script: Any, tables: Any):
    alarm = {"errors": [], "warnings": ["split_shift"], "root": "split_shift"}
    twin = FAULT | alarm | {"buggy": False}
    stressed = twin | {"part": "stress", "case": "G01", "stress": "rate x 2"}
    healthy = twin | {"case": "G01"}
    fault = FAULT | {"errors": ["constant_output"], "root": "constant_output"}
    assert " x  split_shift" in script.line(twin)
    outcomes = tables.Outcomes([fault, twin, healthy, stressed])
    assert [cell[:6] for cell in cells(outcomes.totals(), "**firstlight")[5:]] == ["0 of 2", "2 of 2"]
    assert "twin: **split_shift**" in cells(outcomes.faults(), "D06")[3]
    assert cells(outcomes.healthy(), "G01")[2:4] == ["**wrong:** split_shift 1x"] * 2
    assert cells(outcomes.more(), "rate x 2")[1].startswith("1 of 1")


@pytest.mark.parametrize(
    ("buggy", "repaired", "counts"),
    [
        (0.1, 0.83, True),
        (0.1, 0.81, False),
        (0.1, None, False),
        (-3.0, 0.82, True),
        (-3.0, 0.5, False),
        (None, 0.82, True),
    ],
)
def test_a_score_is_restored_at_nine_tenths_of_the_way(tables: Any, buggy: float, repaired: float, counts: bool):
    scores = {("D06", True, 11): buggy, ("D06", False, 11): 0.9}
    assert tables.restored(FAULT | {"repaired": repaired}, scores) is counts


@pytest.mark.parametrize("total", [1, 20, 180])
def test_an_interval_of_none_is_wilsons(tables: Any, total: int):
    """The bound solves (p - p_hat)^2 = z^2 p (1 - p) / n, which for p_hat = 0 gives z^2 / (n + z^2)."""
    z = NormalDist().inv_cdf(0.975)
    assert tables.wilson(0, total) == pytest.approx((0, z * z / (total + z * z)))
    assert tables.wilson(total, total) == pytest.approx((total / (total + z * z), 1))
    assert tables.shown([False] * 180) == "0 of 180 (0 %; 0 to 2 %)"  # 2.1 %


def test_new_outcomes_take_the_place_of_old_ones_of_the_same_run(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.MARKS[0]}\nold\n{script.MARKS[1]}\nafter\n")
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "RECORDS", tmp_path / "records.jsonl")
    first = FAULT | {"errors": [], "root": None}
    script.write([first, first | {"seed": 12}], command="it")
    script.write([first | {"errors": ["constant_output"], "root": "constant_output"}], command="it")
    records = [json.loads(line) for line in script.RECORDS.read_text().splitlines()]
    assert [(record["seed"], record["root"]) for record in records] == [(11, "constant_output"), (12, None)]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "constant_output 1x, **wrong:** nothing 1x" in text


def test_the_page_holds_what_was_recorded(script: Any, tables: Any):
    text = script.PAGE.read_text(encoding="utf-8")
    outcomes = tables.Outcomes(script.read_records())
    for markdown in (outcomes.totals(), outcomes.more(), outcomes.faults(), outcomes.healthy()):
        assert markdown in text


@pytest.mark.slow
def test_rules_that_watch_do_not_change_the_training(rivals: Any):
    def trained(*callbacks: Any) -> dict[str, Any]:
        module, data, kwargs = CASES["D19"].build(True, 11)  # draws random numbers in eval mode too
        seed_everything(11, verbose=False)
        trainer(**kwargs | {"max_epochs": 4}, callbacks=list(callbacks)).fit(module, data)
        return weights(module)

    watchers = [rivals.WATCHERS[name](CASES["D19"]) for name in ("AutoTrainer", "UMLAUT")]
    assert same(trained(), trained(*watchers))
    assert not any(watcher.said.raised for watcher in watchers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rival", "rule"),
    [
        ("D07", "UMLAUT", "final activation"),
        ("D01", "UMLAUT", "input not normalized"),
        ("D17", "AutoTrainer", "dying ReLU"),
        ("D16", "AutoTrainer", "vanishing"),
    ],
)
def test_rules_say_what_their_paper_says_of_such_a_fault(rivals: Any, name: str, rival: str, rule: str):
    """By their definitions; what else they say of the two programs is left aside."""
    said = {}
    for fault in (True, False):
        watcher = rivals.WATCHERS[rival](dataclasses.replace(CASES[name], epochs=4))  # AutoTrainer judges at half
        module, data, kwargs = CASES[name].build(fault, 11)
        seed_everything(11, verbose=False)
        trainer(**kwargs | {"max_epochs": 4}, callbacks=[watcher]).fit(module, data)
        assert not watcher.said.raised
        said[fault] = watcher.said.errors
    assert rule in said[True]
    assert rule not in said[False]


@pytest.mark.parametrize(
    ("accuracies", "answer"),
    [
        ([0.5, 0.9, 0.5, 0.9, 0.5, 0.9], True),
        ([0.1, 0.3, 0.5, 0.7, 0.8, 0.9], False),
        ([0.5, 0.51, 0.5, 0.51, 0.5], False),
    ],
)
def test_oscillation_counts_swings_of_three_points(rivals: Any, accuracies: list[float], answer: bool):
    assert rivals.oscillates(accuracies, 0.03, 0.2) is answer
