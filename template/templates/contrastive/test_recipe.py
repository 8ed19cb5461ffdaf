"""The recipe keeps its word: loss and rates fall, a checkpoint is the model, the probe is fair."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from {{ cookiecutter.package_name }} import baseline, digits, main

Fit = Callable[..., Path]
Column = Callable[[Path, str], list[float]]


def test_the_loss_of_one_batch_falls(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--config", "configs/debug/overfit.yaml")  # raises if not


def test_the_learning_rate_warms_up_and_falls(fast_run: Path, column: Column) -> None:
    rates = column(fast_run, "lr/decay")
    assert rates == column(fast_run, "lr/no_decay")
    assert all(earlier > later for earlier, later in pairwise(rates[1:]))


{% include "shared/test_unsupervised.py" %}

def test_the_probe_sees_what_is_there_and_nothing_else() -> None:
    answers = {
        image.tobytes(): int(label)
        for images, labels in digits.load_split().values()
        for image, label in zip(images, labels, strict=True)
    }

    def told(images: torch.Tensor) -> torch.Tensor:
        labels = torch.tensor([answers[image.numpy().tobytes()] for image in images])
        return torch.nn.functional.one_hot(labels, digits.NUM_CLASSES)

    assert baseline.linear_probe(told) == 1
    assert baseline.linear_probe(told, labels_per_class=1) == 1
    assert baseline.linear_probe(lambda images: torch.zeros(len(images), 3)) < 0.15
