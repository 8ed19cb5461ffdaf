"""The recipe keeps its word: rates move as planned, a checkpoint holds the averages, the judge judges."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from {{ cookiecutter.package_name }} import baseline, digits, main

Column = Callable[[Path, str], list[float]]


def test_the_learning_rates_warm_up(fast_run: Path, column: Column) -> None:
    for part in ("0", "1"):
        rates = column(fast_run, f"lr/{part}/decay")
        assert rates == pytest.approx([0.001 * (step + 1) / 50 for step in range(8)])


{% include "shared/test_unsupervised.py" %}

def test_a_checkpoint_holds_the_averages(fast_run: Path) -> None:
    checkpoint = torch.load(fast_run / "checkpoints" / "last.ckpt", weights_only=True)
    averages, live = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert averages.keys() == live.keys()
    assert any(not torch.equal(averages[name], live[name]) for name in live)


def test_the_judge_knows_digits_from_other_things() -> None:
    images, labels = digits.load_split()["test"]
    classes, sure = baseline.coverage(images)
    assert classes == 10
    assert sure > 0.8
    assert baseline.coverage(images[labels < 3])[0] == 3
    noise = np.random.default_rng(0).uniform(size=images.shape)
    assert baseline.coverage(noise)[1] < 0.5
    assert baseline.coverage(baseline.baseline_images())[0] < 9


def test_what_the_judge_says_is_logged(fast_run: Path, column: Column) -> None:
    assert len(column(fast_run, "val/classes")) == 2
    assert all(0 <= sure <= 1 for sure in column(fast_run, "val/sure"))
