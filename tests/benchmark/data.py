"""Faults of data and labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from benchmark.case import Case, Knobs, Program
from benchmark.common import (
    ArrayData,
    Arrays,
    Classifier,
    Regressor,
    breast_cancer,
    diabetes,
    digits,
    mlp,
    standardized,
)


def pixels(*, scale: bool) -> Arrays:
    """Return the digits as an image file holds them, 0 to 255."""
    x, y = digits()
    x = x * 255
    return (x / 255 if scale else x), y


def input_scale(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(50), 10), partial(SGD, lr=knobs.lr(0.1)))
    return module, ArrayData(partial(pixels, scale=not buggy), batch_size=knobs.batch(32), seed=seed), {}


def progression(*, standardize: bool) -> Arrays:
    """Return the diabetes data with the target in thousandths."""
    x, y = diabetes()
    y = y * 1000
    return x, (standardized(y) if standardize else y)


def target_scale(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Regressor(mlp(10, knobs.width(32), knobs.width(32), 1), partial(Adam, lr=knobs.lr(1e-3)))
    return module, ArrayData(partial(progression, standardize=not buggy), batch_size=knobs.batch(32), seed=seed), {}


class ShuffledApart(ArrayData):
    """Shuffles what it trains with, the labels apart from the inputs if so told."""

    def __init__(self, *, together: bool, **kwargs: Any) -> None:
        super().__init__(digits, **kwargs)
        self.together = together

    def training_samples(self, x: Tensor, y: Tensor) -> TensorDataset:
        generator = torch.Generator().manual_seed(self.seed + 1)
        order = torch.randperm(len(x), generator=generator)
        order_of_labels = order if self.together else torch.randperm(len(x), generator=generator)
        return TensorDataset(x[order], y[order_of_labels])


def wrong_labels(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(64), 10), partial(Adam, lr=knobs.lr(1e-3)))
    return module, ShuffledApart(together=not buggy, batch_size=knobs.batch(32), seed=seed), {}


def with_gaps(*, impute: bool, seed: int) -> Arrays:
    """Return the breast cancer data, of which 40 measurements are missing."""
    x, y = breast_cancer()
    cells = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(seed))[:40]
    x = x.clone()
    x.view(-1)[cells] = torch.nan
    return (x.nan_to_num(0) if impute else x), y  # 0 is the mean


def missing_values(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(30, knobs.width(16), 2), partial(Adam, lr=knobs.lr(1e-2)))
    arrays = partial(with_gaps, impute=not buggy, seed=seed)
    return module, ArrayData(arrays, batch_size=knobs.batch(32), seed=seed), {}


class Sorted(ArrayData):
    """Trains with samples that are stored class by class."""

    def __init__(self, *, shuffle: bool, **kwargs: Any) -> None:
        super().__init__(digits, **kwargs)
        self.shuffle = shuffle

    def training_samples(self, x: Tensor, y: Tensor) -> TensorDataset:
        order = y.argsort(stable=True)
        return TensorDataset(x[order], y[order])

    def train_dataloader(self) -> DataLoader:
        if self.shuffle:
            return super().train_dataloader()
        return DataLoader(self.train_set, batch_size=self.batch_size)


def sorted_order(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(32), 10), partial(SGD, lr=knobs.lr(0.1)))
    return module, Sorted(shuffle=not buggy, batch_size=knobs.batch(32), seed=seed), {}


fault: Callable[..., Case] = partial(Case, family="data")

CASES = [
    fault(
        id="D01",
        title="digits, pixels from 0 to 255",
        origin="Stack Overflow 55328966; TheDeepChecker (TOSEM 2022): missing normalization",
        fault="The inputs are 255 times what the layers are initialized for.",
        fix="divide the pixels by 255",
        finding="input_scale",
        make=input_scale,
        epochs=15,
        reference=(0.09, 0.935),
    ),
    fault(
        id="D02",
        title="diabetes, target in thousandths",
        origin="Stack Overflow 47932589",
        fault="The regression target has a standard deviation of 77 000.",
        fix="standardize the target",
        finding="target_scale",
        make=target_scale,
        epochs=60,
        metric="val/r2",
        reference=(-3.3, 0.515),
        tolerance=0.2,  # over eight splits of these 442 samples the score spreads by .10, that of least squares by .08
    ),
    fault(
        id="D03",
        title="digits, labels shuffled apart",
        origin="TheDeepChecker (TOSEM 2022): wrong labels; Stack Overflow 45337371",
        fault="The training labels are shuffled apart from their inputs.",
        fix="shuffle inputs and labels together",
        finding="no_label_signal",
        make=wrong_labels,
        epochs=25,
        reference=(0.11, 0.965),
    ),
    fault(
        id="D04",
        title="breast cancer, missing values",
        origin="DeepDiagnosis (ICSE 2022): numerical error",
        fault="Forty cells of the table are NaN.",
        fix="impute the mean",
        finding="nonfinite_data",
        make=missing_values,
        epochs=15,
        reference=(0.40, 0.99),
    ),
    fault(
        id="D20",
        title="digits, class by class",
        origin="Taxonomy of real faults (ICSE 2020): no shuffling",
        fault="The samples are sorted by label and not shuffled.",
        fix="shuffle the training samples",
        finding="sorted_order",
        make=sorted_order,
        epochs=15,
        reference=(0.56, 0.93),
    ),
]
