"""The recipe keeps its word: loss and rates fall, the divergence is annealed, a checkpoint is the model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from {{ cookiecutter.package_name }} import baseline, main

Fit = Callable[..., Path]
Column = Callable[[Path, str], list[float]]


def test_the_loss_of_one_batch_falls(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--config", "configs/debug/overfit.yaml")  # raises if not


def test_the_learning_rate_warms_up_and_falls(fast_run: Path, column: Column) -> None:
    rates = column(fast_run, "lr/decay")
    assert rates == column(fast_run, "lr/no_decay")
    assert rates[0] >= rates[1] > rates[-1] > 0


def test_the_divergence_counts_more_and_more(fast_run: Path, column: Column) -> None:
    keys = ("train/loss", "train/loss/reconstruction", "train/loss/kl")
    total, reconstruction, kl = (column(fast_run, key) for key in keys)
    weights = [(t - r) / k for t, r, k in zip(total, reconstruction, kl, strict=True)]
    assert weights == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1], rel=0.01)  # a quarter of eight steps


{% include "shared/test_unsupervised.py" %}

def test_the_rival_has_as_many_latent_numbers(fast_run: Path) -> None:
    config = yaml.safe_load((fast_run / "config.yaml").read_text("utf-8"))
    assert config["model"]["latent_dim"] == baseline.LATENT_DIM
