"""The split is what it says, and the loaders keep to it."""

import numpy as np
import pytest
import torch

from {{ cookiecutter.package_name }} import data, digits


def test_every_image_is_in_one_part() -> None:
    manifest = digits.load_manifest()
    rows = manifest["train"] + manifest["val"] + manifest["test"]
    assert sorted(rows) == list(range(1797))


def test_every_part_has_every_digit_in_the_same_share() -> None:
    for images, labels in digits.load_split().values():
        assert images.shape[1:] == (1, 8, 8)
        assert images.min() >= 0
        assert images.max() <= 1
        share = np.bincount(labels, minlength=digits.NUM_CLASSES) / len(labels)
        assert np.abs(share - 0.1).max() < 0.015


def test_other_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = digits.load_manifest() | {"sha256": "0" * 64}
    monkeypatch.setattr(digits, "load_manifest", lambda: manifest)
    with pytest.raises(ValueError, match="was made for 000"):
        digits.load_split()


def test_training_images_are_normalized_and_shuffled_the_same_way_twice() -> None:
    def first_labels(seed: int) -> list[int]:
        module = data.DigitsDataModule(augment=False, seed=seed)
        module.setup("fit")
        images = module.datasets["train"].images[..., 1:-1, 1:-1]
        assert abs(float(images.mean())) < 1e-5
        assert abs(float(images.std()) - 1) < 1e-3
        labels: list[int] = next(iter(module.train_dataloader()))[1].tolist()
        return labels

    assert first_labels(0) == first_labels(0)
    assert first_labels(0) != first_labels(1)


def test_a_shift_moves_an_image_by_at_most_one_pixel() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 1
    dataset = data.DigitsDataset(image, torch.zeros(1, dtype=torch.long), shift=True)
    seen = {tuple(dataset[0][0].nonzero()[0].tolist()) for _ in range(200)}
    assert seen == {(0, row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_only_training_images_are_shifted() -> None:
    module = data.DigitsDataModule()
    module.setup("fit")
    assert {part: dataset.shift for part, dataset in module.datasets.items()} == {
        "train": True,
        "val": False,
        "test": False,
    }
