"""The recipe keeps its word: a batch is memorized, rates move as planned, a checkpoint is the model."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from {{ cookiecutter.package_name }} import main

MODULE, DATA = main.{{ tasks[cookiecutter.task].module }}, main.{{ tasks[cookiecutter.task].data }}
Fit = Callable[..., Path]
Column = Callable[[Path, str], list[float]]


def test_one_batch_can_be_memorized(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--config", "configs/debug/overfit.yaml")  # raises if not


def test_the_learning_rate_warms_up_and_falls(fast_run: Path, column: Column) -> None:
    rates = column(fast_run, "lr/decay")
    assert rates == column(fast_run, "lr/no_decay")
    assert all(earlier > later for earlier, later in pairwise(rates[1:]))


def test_a_loaded_checkpoint_gives_the_logged_loss(fast_run: Path, column: Column) -> None:
    module = MODULE.load_from_checkpoint(fast_run / "checkpoints" / "last.ckpt", map_location="cpu").eval()
    loaders = DATA()
    loaders.setup("validate")
    total, count = 0.0, 0
    with torch.no_grad():
        for _, batch in zip(range(2), loaders.val_dataloader(), strict=False):  # as many as fast.yaml has
            total += len(batch[0]) * float(sum(module.loss_terms(batch).values()))
            count += len(batch[0])
    assert total / count == pytest.approx(column(fast_run, "val/loss")[-1], rel=1e-5)
