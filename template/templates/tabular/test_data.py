"""The split is fixed, its parts share no patient, and only the train part decides the scale."""

import hashlib

import numpy as np
import torch

from {{ cookiecutter.package_name }} import data


def test_every_patient_is_in_one_part() -> None:
    split = data.load_split()
    assert [len(targets) for _, targets in split.values()] == [265, 89, 88]
    rows = [tuple(row) for columns, targets in split.values() for row in np.column_stack([columns, targets])]
    assert len(set(rows)) == 442


def test_the_split_is_the_one_that_was_measured() -> None:
    targets = np.concatenate([targets for _, targets in data.load_split().values()])
    found = hashlib.sha256(targets.astype("<f8").tobytes()).hexdigest()
    assert found[:16] == "afb4aa4057eba15f"


def test_the_train_part_decides_the_scale() -> None:
    split = data.load_split()
    columns, targets = data.standardized(split)["train"]
    assert np.allclose(columns.mean(axis=0), 0)
    assert np.allclose(columns.std(axis=0), 1)
    assert np.isclose(targets.std(), 1)
    shifted = {part: (x + 5 * (part == "test"), y) for part, (x, y) in split.items()}
    assert np.array_equal(data.standardized(shifted)["train"][0], columns)


def test_training_patients_are_shuffled_the_same_way_twice() -> None:
    def first(seed: int) -> torch.Tensor:
        module = data.DiabetesDataModule(seed=seed)
        module.setup("fit")
        batch: torch.Tensor = next(iter(module.train_dataloader()))[0]
        return batch

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
