"""Training, from the command line down: every config loads, a run is whole, its checkpoint comes back."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from {{ cookiecutter.package_name }} import main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
Fit = Callable[..., Path]
Column = Callable[[Path, str], list[float]]


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_loads(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # configs are found from any folder
    with pytest.raises(SystemExit) as stopped:
        main.main(["fit", "--config", config, "--print_config"])
    assert stopped.value.code == 0
    assert "max_epochs" in capsys.readouterr().out


def test_a_run_leaves_its_record(fast_run: Path, column: Column) -> None:
    names = {path.name for path in fast_run.iterdir()}
    assert {"config.yaml", "metrics.csv", "manifest.json", "run.png", "checkpoints"} <= names
    losses = column(fast_run, "train/loss")
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
    assert len(column(first, "train/loss")) == 12


def test_a_second_fit_is_a_second_run(fit: Fit, tmp_path: Path) -> None:
    first, second = (fit(tmp_path, "--config", "configs/debug/fast.yaml") for _ in range(2))
    assert first != second
