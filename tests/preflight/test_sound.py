"""Sound set-ups that a hasty rule would call faulty."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from firstlight.checks import Severity
from firstlight.preflight import run_preflight
from helpers import Plain, loader, trainer


class Branches(nn.Module):
    """Residual branches that start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 4)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Any:
        return self.head(x + self.outer(self.inner(x).relu()))


class LogProbabilities(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.nll_loss(self.net(batch[0]), batch[1])


class MixesInStep(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        share = 0.9
        output = self.net(share * batch[0] + (1 - share) * batch[0].flip(0))
        target = F.one_hot(batch[1], 4).float()
        return F.cross_entropy(output, share * target + (1 - share) * target.flip(0))


def mlp(*end: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), *end)


SOUND = {
    "log-probabilities": lambda: LogProbabilities(mlp(nn.LogSoftmax(1))),
    "branches from zero": lambda: Plain(Branches()),
    "mixing in the step": lambda: MixesInStep(mlp()),
    "wide inputs before a norm": lambda: Plain(nn.Sequential(nn.BatchNorm1d(8), mlp())),
}


@pytest.mark.parametrize("name", SOUND)
def test_nothing_is_said(name: str) -> None:
    torch.manual_seed(0)
    module = SOUND[name]()
    data: Any = partial(loader, num_samples=256)(shuffle=True, batch_size=32)
    if name.startswith("wide"):
        inputs, target = data.dataset.tensors
        data.dataset.tensors = (100 * inputs, target)
    report = run_preflight(module, data, trainer=trainer(max_epochs=20))
    assert [str(found) for found in report.findings if found.severity >= Severity.WARNING] == []
    assert not report.crashed


class Reconstructs(Plain):
    """A batch that is one tensor, with no target beside it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch), batch)


def test_a_batch_may_be_a_bare_tensor() -> None:
    torch.manual_seed(0)
    module = Reconstructs(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)))
    data = DataLoader(torch.randn(96, 8), batch_size=8)  # type: ignore[arg-type, var-annotated]
    report = run_preflight(module, data, trainer=trainer(max_epochs=20))
    assert [str(found) for found in report.findings if found.severity >= Severity.WARNING] == []
    assert report.readings["pair/own"] < 0.5, "small batches were joined, and the batch was learned"
    assert not report.crashed


def test_what_was_not_looked_at_has_not_passed() -> None:
    """Two samples say nothing of dead units, and data that were not read may hold NaN."""
    data = loader(num_samples=8, batch_size=2)
    report = run_preflight(Plain(mlp()), data, trainer=trainer(max_epochs=2))
    assert "too few" in report.skipped["FL202"]
    report = run_preflight(Plain(mlp()), data, trainer=trainer(max_epochs=2), budget_seconds=1e-9)
    assert report.skipped["FL101"] == "the budget of time is spent"
