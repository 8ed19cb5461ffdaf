"""The patients as Lightning wants them: ten measurements, and how far the disease was a year later."""

from typing import Literal

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Part = Literal["train", "val", "test"]
Table = tuple[NDArray[np.float64], NDArray[np.float64]]


def load_split() -> dict[Part, Table]:
    """Return columns ``[N, 10]`` and targets ``[N]`` for each part, in the units of the study.

    The rows are dealt out three fifths, a fifth and a fifth. NumPy promises never to change the numbers of
    ``RandomState``, so every run and every baseline is judged on the same patients.
    """
    columns, targets = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.RandomState(0).permutation(len(targets))
    cuts = [round(0.6 * len(order)), round(0.8 * len(order))]
    train, val, test = np.split(order, cuts)
    parts: dict[Part, NDArray[np.int64]] = {"train": train, "val": val, "test": test}
    return {part: (columns[rows], targets[rows]) for part, rows in parts.items()}


def standardized(split: dict[Part, Table]) -> dict[Part, Table]:
    """Return ``split`` with columns and targets in deviations from the mean, both of the train part alone."""
    columns, targets = split["train"]
    mean, deviation = columns.mean(axis=0), columns.std(axis=0)
    return {
        part: ((x - mean) / deviation, (y - targets.mean()) / targets.std()) for part, (x, y) in split.items()
    }


class DiabetesDataModule(LightningDataModule):
    """Loaders over the fixed split.

    Args:
        batch_size: Patients in a batch.
        num_workers: Loader processes; rows in memory are fastest with none.
        seed: Seed of the order of training patients.
    """

    def __init__(self, *, batch_size: int = 32, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.datasets: dict[Part, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        """Load the split, standardized by its train part."""
        self.datasets = {
            part: TensorDataset(torch.from_numpy(x).float(), torch.from_numpy(y).float())
            for part, (x, y) in standardized(load_split()).items()
        }

{% set samples, batch, part, whole_batches = "patients", "tuple[Tensor, ...]", "Part", false -%}
{% include "shared/loaders.py" -%}
