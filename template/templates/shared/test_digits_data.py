"""The loaders keep to the split."""

import pytest
import torch

from {{ cookiecutter.package_name }} import data


def test_training_images_come_whole_batches_at_a_time_in_the_same_order_for_the_same_seed() -> None:
    def epoch(seed: int) -> list[torch.Tensor]:
        module = data.DigitsDataModule(batch_size=100, seed=seed)
        module.setup("fit")
        return [images for images, _ in module.train_dataloader()]

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert [len(images) for images in first] == [100] * 12
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("part", "size"), [("val", 180), ("test", 360), ("predict", 360)])
def test_every_other_image_comes_once_in_its_own_order(part: str, size: int) -> None:
    module = data.DigitsDataModule(batch_size=100)
    module.setup(part)
    loader = getattr(module, f"{part}_dataloader")()
    images = torch.cat([images for images, _ in loader])
    expected = module.datasets["val" if part == "val" else "test"].tensors[0]
    assert torch.equal(images, expected)
    assert images.shape == (size, 1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
