"""Training, from the command line down: a run is whole, its checkpoint holds plain values, it goes on."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Fit = Callable[..., Path]
Column = Callable[[Path, str], list[float]]


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))


def test_a_run_leaves_its_record(fast_run: Path, column: Column) -> None:
    names = {path.name for path in fast_run.iterdir()}
    assert {"config.yaml", "metrics.csv", "manifest.json", "run.png", "health.html", "checkpoints"} <= names
    losses = column(fast_run, "{{ tasks[cookiecutter.task].loss }}")
    assert len(losses) == 8
    assert all(map(math.isfinite, losses))


def test_a_checkpoint_holds_plain_values(fast_run: Path) -> None:
    checkpoint = torch.load(fast_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert plain(dict(checkpoint["hyper_parameters"]))


def test_a_run_goes_on_in_its_own_folder(fit: Fit, column: Column, tmp_path: Path) -> None:
    first = fit(tmp_path, "--config", "configs/debug/fast.yaml")
    again = fit(
        tmp_path, "--config", "configs/debug/fast.yaml", "--trainer.max_epochs", "3", "--resume", "last"
    )
    assert again == first
    assert len(column(first, "{{ tasks[cookiecutter.task].loss }}")) == 12


def test_a_second_fit_is_a_second_run(fit: Fit, tmp_path: Path) -> None:
    first, second = (fit(tmp_path, "--config", "configs/debug/fast.yaml") for _ in range(2))
    assert first != second
