"""The benchmark of callbacks runs, and its verdicts can go either way."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about loaders, metrics and batch sizes


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.delitem(sys.modules, "callbacks", raising=False)  # a folder of tests has the same name
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("callbacks")
    for name in {"callbacks", "_race", "_table"} - before:
        sys.modules.pop(name, None)


class Slow(Callback):
    """Takes as much CPU time at every step as it is told to."""

    role = "observer"
    seconds_a_tensor = seconds_a_square = 0.0

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        number = sum(1 for _ in pl_module.parameters())
        end = time.process_time() + self.seconds + number * self.seconds_a_tensor + number**2 * self.seconds_a_square
        while time.process_time() < end:
            pass


class LinearlySlow(Slow):
    seconds_a_tensor = 1e-4


class Square(Slow):
    seconds_a_square = 1e-6


@pytest.mark.parametrize(("extra", "met"), [(0.0, True), (0.02, True), (0.04, False), (1.0, False)])
def test_a_step_may_take_three_hundredths_more(benchmark, extra, met):
    net = benchmark.CNN.sized(tiny=True)
    turned = {"bare": [1.0] * 12, "default observers": [1.0 + extra] * 12}
    line = benchmark.beside_bare(net, turned, "default observers", benchmark.OBSERVERS_MAY)
    assert line.met is met
    assert line.ratio == pytest.approx(1.0 + extra)
    assert line.cells[-1] == ("yes" if met else "**no**")


@pytest.mark.parametrize(("mine", "other", "met"), [(0.1, 0.31, True), (0.1, 0.29, False), (0.1, 0.0, False)])
def test_a_cost_may_be_a_third_of_the_peers(benchmark, mine, other, met):
    net = benchmark.CNN.sized(tiny=True)
    turned = {"bare": [1.0] * 12, "ours": [1.0 + mine] * 12, "theirs": [1.0 + other] * 12}
    assert benchmark.beside(net, turned, "ours", "theirs", benchmark.THIRD).met is met


def test_a_cost_counts_the_step_that_logs_as_often_as_it_comes(benchmark):
    """Two steps a turn, four a period: of ten units at each log step, a step pays a quarter."""
    plain, logs = 1.0, 11.0
    turns = [99.0, 99.0, 2 * plain, plain + logs, 2 * plain, plain + logs]
    assert benchmark.per_step(turns, length=2, period=4) == pytest.approx(plain + 10 / 4)


def test_a_slow_observer_fails(benchmark, monkeypatch):
    slow = benchmark.Entry(lambda: [Slow(0.03)])
    bare = benchmark.Entry()
    monkeypatch.setattr(benchmark, "ENTRIES", {"bare": bare, "default observers": slow, "HealthMonitor": slow})
    assert [line.met for line in benchmark.whole_steps(tiny=True)] == [False, False, False]


def test_a_slow_average_fails(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark.ours, "WeightEMA", lambda decay: Slow(0.03))
    assert [line.met for line in benchmark.averages(tiny=True)] == [False, False]


def test_what_grows_with_the_square_of_the_tensors_fails(benchmark, monkeypatch):
    entries = {"bare": benchmark.Entry()} | {
        cls.__name__: benchmark.Entry(lambda cls=cls: [cls()]) for cls in (LinearlySlow, Square)
    }
    monkeypatch.setattr(benchmark, "observers", lambda: entries)
    # Timings of a few milliseconds: on a busy machine one of three has to be undisturbed.
    assert any([line.met for line in benchmark.growth(tiny=True)] == [True, False] for _ in range(3))


def test_every_observer_is_measured(benchmark):
    from contracts.test_roles import of_role

    of_the_room = {cls.__name__ for cls in of_role("observer") if cls.__module__.startswith("firstlight.callbacks")}
    assert set(benchmark.observers()) == {"bare", "WeightEMA"} | of_the_room


def test_a_fit_that_fails_ends_the_race_with_its_error(benchmark):
    class Breaks(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        benchmark.fits(
            benchmark.MLP.sized(tiny=True), {"bare": benchmark.Entry(), "a": benchmark.Entry(lambda: [Breaks()])}
        )


@pytest.mark.slow
def test_the_whole_runs(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent / "plugins"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / "callbacks.py"), "--tiny"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert sum(row.rstrip(" |").endswith(("yes", "**no**")) for row in rows) >= 10
    assert not list(tmp_path.iterdir())
