"""Strings are made of the digits of their part, at the places and under the labels that are said."""

import numpy as np
import pytest
import torch

from {{ cookiecutter.package_name }} import data, digits


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_every_digit_comes_from_its_own_part(part: digits.Part) -> None:
    split = digits.load_split()
    known = {image.tobytes(): int(label) for image, label in zip(*split[part], strict=True)}
    others = {image.tobytes() for other in split if other != part for image in split[other][0]}
    strings, labels = data.load_strings(part)
    for string, row in zip(strings[:200], labels[:200], strict=True):
        windows = [
            np.ascontiguousarray(string[:, :, begin : begin + 8]).tobytes()
            for begin in range(data.COLUMNS - 7)
        ]
        assert [known[window] for window in windows if window in known] == row.tolist()
        assert not others & set(windows)


def test_gaps_are_of_zero_to_two_columns() -> None:
    ones = np.ones((1, 1, 8, 8), dtype=np.float32)
    strings, labels = data.compose(ones, np.array([7]), 500, seed=0)
    assert (labels == 7).all()
    inked = strings.max(axis=(1, 2)) > 0
    assert (inked.sum(axis=1) == 24).all()
    assert set(inked.argmax(axis=1)) == {0, 1, 2}  # where the first digit begins
    last = data.COLUMNS - inked[:, ::-1].argmax(axis=1)  # where the third one ends
    assert last.min() == 24
    assert last.max() == 30


def test_the_same_seed_gives_the_same_strings() -> None:
    split = digits.load_split()["val"]
    first, again, other = (data.compose(*split, 20, seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_labels_leave_zero_to_the_blank() -> None:
    module = data.StringsDataModule(batch_size=8)
    module.setup("fit")
    images, labels = next(iter(module.val_dataloader()))
    assert images.shape == (8, 1, 8, data.COLUMNS)
    assert images.dtype == torch.float32
    assert torch.equal(labels - 1, torch.from_numpy(data.load_strings("val")[1][:8]))
    everything = module.datasets["train"].labels
    assert everything.unique().tolist() == list(range(1, 11))


def test_only_training_images_are_moved_and_by_at_most_one_pixel() -> None:
    module = data.StringsDataModule()
    module.setup("fit")
    assert {part: dataset.shift for part, dataset in module.datasets.items()} == {
        "train": True,
        "val": False,
        "test": False,
    }
    image = torch.zeros(1, 1, 8, data.COLUMNS)
    image[0, 0, 4, 4] = 1
    dataset = data.StringsDataset(image, torch.zeros(1, data.LENGTH, dtype=torch.long), shift=True)
    seen = {tuple(dataset[0][0].nonzero()[0].tolist()) for _ in range(100)}
    assert seen == {(0, row, 4) for row in (3, 4, 5)}
