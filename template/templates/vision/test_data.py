"""The loaders keep to the split, and only training images are changed."""

import torch

from {{ cookiecutter.package_name }} import data


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
