"""The parts are the whole text in order, and every length of window goes over it once."""

from itertools import pairwise
from pydoc_data.topics import topics
from types import SimpleNamespace

import pytest
import torch

from {{ cookiecutter.package_name }} import data


def test_the_parts_are_the_text_in_order() -> None:
    parts = data.load_parts()
    text = b"".join(bytes(part.tolist()) for part in parts.values()).decode("utf-8")
    assert text == "\n".join(topics[name] for name in sorted(topics))
    shares = [len(part) / sum(map(len, parts.values())) for part in parts.values()]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.001)


def test_every_token_but_the_first_is_predicted_once() -> None:
    rows = data.windows(torch.arange(100), 8)
    assert rows.shape == (12, 9)
    assert rows[:, 1:].flatten().tolist() == list(range(1, 97))
    assert all(int(earlier[-1]) == int(later[0]) for earlier, later in pairwise(rows))


def module_in_epoch(epoch: int, seed: int = 0) -> data.TopicsDataModule:
    module = data.TopicsDataModule(batch_size=4, context=64, curriculum=(16, 32), seed=seed)
    module.setup("fit")
    module.trainer = SimpleNamespace(current_epoch=epoch)  # type: ignore[assignment]
    return module


def test_windows_get_longer_and_epochs_stay_as_long() -> None:
    loaders = [module_in_epoch(epoch).train_dataloader() for epoch in range(4)]
    shapes = [tuple(next(iter(loader)).shape) for loader in loaders]
    assert shapes == [(16, 17), (8, 33), (4, 65), (4, 65)]
    assert len({len(loader) for loader in loaders}) == 1


def test_the_order_is_that_of_epoch_and_seed() -> None:
    def first(epoch: int, seed: int = 0) -> torch.Tensor:
        batch: torch.Tensor = next(iter(module_in_epoch(epoch, seed).train_dataloader()))
        return batch

    assert torch.equal(first(2), first(2))
    assert not torch.equal(first(2), first(3))
    assert not torch.equal(first(2), first(2, seed=5))


def test_a_length_that_does_not_divide_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="48 is not a divisor of context=128"):
        data.TopicsDataModule(curriculum=(48,))
