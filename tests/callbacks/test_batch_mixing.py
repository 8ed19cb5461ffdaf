"""BatchMixing: training batches are mixed, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from torchmetrics.classification import MulticlassAccuracy

from firstlight.callbacks import BatchMixing
from firstlight.mixing import CutMix, MixUp
from helpers import fit, loader, supervised, trainer


class Seen(Callback):
    def __init__(self) -> None:
        self.train: list[Any] = []
        self.val: list[Any] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.train.append([part.clone() for part in batch])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.val.append([part.clone() for part in batch])


def seen(callback: Callback | None, **kwargs: Any) -> Seen:
    record = Seen()
    metrics = {"accuracy": MulticlassAccuracy(num_classes=4, average="micro")}
    callbacks = [callback, record] if callback else [record]
    fit(supervised(metrics=metrics), *callbacks, val=loader(shuffle=False), **({"max_epochs": 1} | kwargs))
    return record


def test_training_is_mixed_and_validation_is_not():
    plain, mixed = seen(None), seen(BatchMixing([MixUp(0.8)], 4))
    for (x, y), (mixed_x, soft) in zip(plain.train, mixed.train, strict=True):
        assert soft.shape == (8, 4)
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
        assert not torch.equal(x, mixed_x)
        one_hot = torch.nn.functional.one_hot(y, 4).float()
        share = soft[(soft != one_hot).any(1)].max(1).values if (soft != one_hot).any() else None
        assert share is None or ((share >= 0.5) & (share <= 1)).all()
    for (x, y), (same_x, same_y) in zip(plain.val, mixed.val, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)


def test_p_zero_is_the_unmixed_batch_with_soft_targets():
    plain, unmixed = seen(None), seen(BatchMixing([MixUp(0.8)], 4, p=0.0))
    for (x, y), (same_x, soft) in zip(plain.train, unmixed.train, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(soft, torch.nn.functional.one_hot(y, 4).float())


def test_p_is_the_share_of_batches():
    plain, some = seen(None, max_epochs=8), seen(BatchMixing([MixUp(0.8)], 4, p=0.5), max_epochs=8)
    mixed = sum(not torch.equal(a[0], b[0]) for a, b in zip(plain.train, some.train, strict=True))
    assert 28 <= mixed <= 68, "of 96 batches, by a coin"


def test_the_draw_is_a_function_of_seed_epoch_and_batch():
    def batches(seed):
        return torch.cat([x for x, _ in seen(BatchMixing([MixUp(0.8)], 4, seed=seed)).train])

    assert torch.equal(batches(1), batches(1))
    assert not torch.equal(batches(1), batches(2))


def test_one_of_several_is_chosen():
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, index):
            return torch.full((1, 8, 8), float(index)), index % 4

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    record = Seen()
    data = torch.utils.data.DataLoader(Images(), batch_size=8)
    fit(supervised(model=model), BatchMixing([MixUp(1.0), CutMix(1.0)], 4), record, data=data, max_epochs=4)
    kinds = set()
    for images, _ in record.train:
        whole = images.flatten(1)
        constant = (whole == whole[:, :1]).all(1)
        kinds.add("mixup" if constant.all() else "cutmix")
    assert kinds == {"mixup", "cutmix"}


@pytest.mark.parametrize("overrides", [True, False])
def test_a_datamodule_with_a_hook_of_its_own_is_mixed_too(overrides):
    class Data(LightningDataModule):
        def train_dataloader(self):
            return loader()

        if overrides:

            def on_after_batch_transfer(self, batch, dataloader_idx):
                return [batch[0] + 100.0, batch[1]]

    record, data = Seen(), Data()
    run = trainer(callbacks=[BatchMixing([MixUp(0.8)], 4), record], max_epochs=1)
    run.fit(supervised(), datamodule=data)
    assert all(soft.shape == (8, 4) for _, soft in record.train)
    assert all((float(x.mean()) > 90) == overrides for x, _ in record.train)
    assert "on_after_batch_transfer" not in vars(data)


def test_the_module_is_put_back():
    module = supervised()
    fit(module, BatchMixing([MixUp(0.4)], 4))
    assert "on_after_batch_transfer" not in vars(module)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 4), ValueError, "mixings must be at least one"),
        ((["mixup"], 4), TypeError, "mixings must be MixUp or CutMix objects"),
        (([MixUp(0.4)], 1), ValueError, "num_classes must be two or more"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchMixing(*arguments)


def test_bad_p_is_named():
    with pytest.raises(ValueError, match="p must be between 0 and 1"):
        BatchMixing([MixUp(0.4)], 4, p=1.5)
