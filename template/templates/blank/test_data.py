"""The parts share no sample, and a seed gives the same data and order."""

import torch

from {{ cookiecutter.package_name }} import data


def make(seed: int = 0) -> data.StarterDataModule:
    module = data.StarterDataModule(seed=seed)
    module.setup("fit")
    return module


def test_the_parts_share_no_sample() -> None:
    points = torch.cat([dataset.tensors[0] for dataset in make().datasets.values()])
    assert len(points.unique(dim=0)) == len(points)


def test_a_seed_gives_the_same_first_batch() -> None:
    first, again, other = (next(iter(make(seed).train_dataloader()))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
