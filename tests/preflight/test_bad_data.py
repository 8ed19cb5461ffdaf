"""What data that cannot be trained on gets: one finding or one error before the first step, and an error in a fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from firstlight.losses import CrossEntropyLoss
from firstlight.modules import SupervisedModule
from firstlight.preflight import run_preflight
from helpers import Plain, fit

INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4


def of(inputs: Tensor, labels: Tensor, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(inputs, labels), **{"batch_size": 8, **kwargs})


def one_nan() -> Tensor:
    inputs = INPUTS.clone()
    inputs[3, 2] = float("nan")
    return inputs


class Ragged(Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        return torch.randn(7 + index % 2), 1


class Raises(Ragged):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("image_path")


# data, what the preflight finds or raises, what a fit raises; None: it trains, or has nothing to train on
ROWS: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "no sample": (lambda: of(INPUTS[:0], LABELS[:0]), "at least one training batch", None),
    "no full batch": (lambda: of(INPUTS[:5], LABELS[:5], drop_last=True), "at least one training batch", None),
    "no loader": (lambda: None, "at least one training batch", None),
    "one sample": (lambda: of(INPUTS[:1], LABELS[:1]), "FL112", None),
    "a NaN": (lambda: of(one_nan(), LABELS), "FL101", None),
    "doubles": (lambda: of(INPUTS.double(), LABELS), "FL215", "must have the same dtype"),
    "bytes": (lambda: of((INPUTS * 10).byte(), LABELS), "FL215", "must have the same dtype"),
    "too few columns": (lambda: of(INPUTS[:, :5], LABELS), "FL215", "cannot be multiplied"),
    "labels from 1": (lambda: of(INPUTS, LABELS + 1), "FL105", "labels must be 0 to 3"),
    "labels as floats": (lambda: of(INPUTS, LABELS.float()), "FL215", "target must be class indices"),
    "labels in a column": (lambda: of(INPUTS, LABELS[:, None]), "FL215", "target must be class indices"),
    "ragged samples": (lambda: DataLoader(Ragged(), 8), "stack expects each tensor", "stack expects each tensor"),
    "a data set that raises": (lambda: DataLoader(Raises(), 8), "image_path", "image_path"),
}


def classifier() -> LightningModule:
    return SupervisedModule(nn.Linear(8, 4), CrossEntropyLoss())


@pytest.mark.parametrize("name", ROWS)
def test_what_the_preflight_says(name: str) -> None:
    make, said, _ = ROWS[name]
    data = make()
    if not said.startswith("FL"):
        with pytest.raises((TypeError, RuntimeError, KeyError), match=said):
            run_preflight(classifier(), (data, None))
        return
    report = run_preflight(classifier(), (data, None), budget_seconds=10)
    assert report.exit_code == 1
    assert report.root is not None
    assert report.root.code == said


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[0]() is not None])
@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero:UserWarning")
def test_what_a_fit_says(name: str) -> None:
    make, _, said = ROWS[name]
    if said is None:
        fit(classifier(), data=make())
        return
    with pytest.raises((RuntimeError, ValueError, KeyError), match=said):
        fit(classifier(), data=make())


# Steps


class NeedsALogger(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.logger.experiment.add_image("first", batch[0])
        return super().training_step(batch, batch_idx)


class InPlace(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = torch.sigmoid(self.net(batch[0]))
        loss = nn.functional.cross_entropy(hidden, batch[1])
        hidden.zero_()
        return loss * hidden.sum().exp()


class Runs(Plain):
    """Raises in the probes of the loss, which give it other outputs, and never in its own step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        assert len(batch[1]) == len(logits)
        return nn.functional.cross_entropy(logits, batch[1])


def codes(module: LightningModule) -> dict[str, Any]:
    found = run_preflight(module, (of(INPUTS, LABELS), None), budget_seconds=10).findings
    return {finding.code: finding for finding in found}


def test_an_error_on_the_way_back_is_the_steps_own() -> None:
    found = codes(InPlace(nn.Linear(8, 4)))["FL215"]
    assert "modified by an inplace operation" in found.message


def test_the_place_is_the_module_and_the_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 6)
            self.second = nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    found = codes(Plain(Net()))["FL215"]
    assert found.where.startswith("net.second, test_bad_data.py:")


def test_what_a_copy_lacks_is_no_error_of_the_step() -> None:
    assert "FL215" not in codes(NeedsALogger(nn.Linear(8, 4)))
    assert "FL215" not in codes(Runs(nn.Linear(8, 4)))
