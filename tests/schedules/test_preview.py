"""preview shows what a schedule does, as a table and as a picture."""

from __future__ import annotations

import builtins
import importlib

import pytest

from firstlight.schedules import Constant, CosineAnnealing, Joined, Preview, WarmupCosine, preview


def test_factors_are_the_schedules():
    schedule = WarmupCosine(warmup=0.1)
    shown = preview(schedule, 50)
    assert isinstance(shown, Preview)
    assert shown.factors == tuple(schedule.factor(step, 50) for step in range(51))


def test_the_table_has_the_first_and_the_last_step_and_rates():
    rows = preview(CosineAnnealing(), 100, lr=0.5, num_rows=5).table().splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [
        ["0", "0.5"],
        ["25", "0.4268"],
        ["50", "0.25"],
        ["75", "0.07322"],
        ["100", "0"],
    ]
    assert [row.count("#") for row in rows] == [40, 34, 20, 6, 0]


def test_a_run_shorter_than_the_table():
    assert len(preview(Constant(), 2).table().splitlines()) == 2 + 3


def test_durations_are_resolved():
    shown = preview(WarmupCosine(warmup="2ep"), 100, steps_per_epoch=10)
    assert shown.schedule == WarmupCosine(warmup=20)
    with pytest.raises(ValueError, match="no length"):
        preview(WarmupCosine(warmup="2ep"), 100)


def test_the_picture(tmp_path):
    shown = preview(Joined([Constant()] * 9, range(5, 45, 5)), 60, lr=0.1)
    (axes,) = shown.figure().axes
    (line,) = axes.lines
    assert list(line.get_ydata()) == pytest.approx([0.1] * 61)
    assert axes.get_title() == "Joined(...)"
    path = shown.save(tmp_path / "rates.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_table_works_and_the_picture_says_what_to_install(monkeypatch):
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name, *args: _missing(name) or real(name, *args))
    shown = preview(Constant(), 5)
    assert "step" in str(shown)
    with pytest.raises(ImportError, match=r"pip install 'firstlight\[viz\]'"):
        shown.figure()


def _missing(name: str) -> None:
    if name.startswith("matplotlib"):
        raise builtins.ModuleNotFoundError(name)
