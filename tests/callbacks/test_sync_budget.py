"""How often each callback makes the host wait for the device: once for every value that the logger writes, no more.

On a CPU nothing waits, but what would wait on a device can be counted: reads, and numbers that are sent there. A tensor
made without ``device=`` lies on the host wherever one trains, and so does what is computed from such tensors alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from contracts.test_roles import CASES, listed
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from firstlight.callbacks import EarlyStopping, GradientClipping, HealthMonitor, ProgressBar
from firstlight.recovery import ExactResume, NonFiniteGuard
from helpers import fit, loader, supervised

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,  # item, float, int, bool
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.equal.default,
}


class Made(TorchFunctionMode):
    """Sees how tensors are made: on the host, or as a number that is copied to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host: Any = WeakIdKeyDictionary()
        self.sent = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in _device_constructors():
            if (kwargs or {}).get("device") is None:
                self.on_host[result] = True
            else:
                self.sent += func in (torch.tensor, torch.as_tensor, torch.asarray)
        return result


class Reads(TorchDispatchMode):
    """Counts what a program on the host wants to know of tensors that lie on the device."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.on_host = made.on_host
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_host = bool(tensors) and all(tensor in self.on_host for tensor in tensors)
        by_mask = func is aten.index.Tensor and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        self.reads += (func in WAITS or by_mask) and not on_host
        result = func(*args, **kwargs)
        if on_host:
            self.on_host.update((leaf, True) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


class Budget(NamedTuple):
    """Reads beyond one for each value that the logger writes."""

    a_step: int = 0
    a_check: int = 0


STATED: dict[type[Callback], Budget] = {
    EarlyStopping: Budget(a_check=4),  # finite? better? which best? and its message
    GradientClipping: Budget(a_step=1),  # finite? on_nonfinite="ignore" asks nothing
    ExactResume: Budget(a_check=1),  # the seed of an epoch's order, drawn on the host
    # Is the step finite? The rest are snapshots of "rollback", which lie on the host.
    NonFiniteGuard: Budget(a_step=3),
    HealthMonitor: Budget(a_check=2),  # the validation loss, out of all that was measured
    ProgressBar: Budget(a_check=7),  # the line of an epoch: its loss and what validation measured
}

WARM, STEPS, EVERY = 5, 50, 5


class Rows(CSVLogger):
    values = 0

    def log_metrics(self, metrics, step=None):
        super().log_metrics(metrics, step)
        self.values += len(metrics)


class Spent(NamedTuple):
    """Reads, numbers sent and values written from the fifth step to the last."""

    reads: int
    sent: int
    values: int


def spent(folder: Path, *callbacks: Callback, with_logger: bool) -> Spent:
    logger = Rows(folder, name="", version="") if with_logger else None
    settings = {"max_epochs": -1, "max_steps": STEPS, "log_every_n_steps": EVERY, "limit_val_batches": 1}
    settings["enable_progress_bar"] = any(isinstance(callback, ProgressBar) for callback in callbacks)
    seen: list[tuple[int, int, int]] = []

    class Meter(Callback):
        def on_train_batch_end(self, *args):
            seen.append((reads.reads, made.sent, logger.values if logger else 0))

    with Made() as made, Reads(made) as reads:
        fit(supervised(), *callbacks, Meter(), val=loader(shuffle=False), logger=logger or False, **settings)
    assert len(seen) == STEPS
    return Spent(*(last - first for first, last in zip(seen[WARM - 1], seen[-1], strict=True)))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return {logs: spent(tmp_path_factory.mktemp("bare"), with_logger=logs) for logs in (True, False)}


@pytest.fixture
def overspent(bare, tmp_path):
    """Return what a callback costs above the bare run and above its budget: nothing, if it is within."""

    def measure(callback: Callback, budget: Budget = Budget(), *, with_logger: bool = False) -> tuple[int, int]:  # noqa: B008
        mine, without = spent(tmp_path, callback, with_logger=with_logger), bare[with_logger]
        values = mine.values - without.values
        steps, checks = STEPS - WARM, STEPS // len(loader())
        stated = budget.a_step * steps + budget.a_check * checks
        return max(0, mine.reads - without.reads - values - stated), max(0, mine.sent - without.sent - values)

    return measure


@pytest.mark.filterwarnings("ignore:GeneratedSamples stands aside")
@pytest.mark.parametrize("with_logger", [True, False], ids=["logger", "no logger"])
@pytest.mark.parametrize("callback", listed(), ids=lambda cls: cls.__name__)
def test_one_read_for_each_value_that_is_written(callback, with_logger, overspent):
    stated = STATED.get(callback, Budget())
    assert overspent(callback(**CASES[callback]), stated, with_logger=with_logger) == (0, 0)


def test_clipping_that_ignores_reads_nothing(overspent):
    assert overspent(GradientClipping(percentile=50.0, on_nonfinite="ignore")) == (0, 0)


@pytest.mark.parametrize("callback", STATED, ids=lambda cls: cls.__name__)
def test_what_is_stated_is_needed(callback, overspent):
    """A budget that nobody uses would hide a callback that got worse."""
    reads, _ = overspent(callback(**CASES[callback]))
    assert reads > 0


class EveryStep(Callback):
    def __init__(self, act: Callable[[LightningModule, Tensor], Any]) -> None:
        self.act = act

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.act(pl_module, next(pl_module.parameters()).detach())


WAITING: dict[str, Callable[[LightningModule, Tensor], Any]] = {
    "item": lambda module, weight: weight.sum().item(),
    "bool": lambda module, weight: bool((weight > 0).any()),
    "mask": lambda module, weight: weight[weight > 0],
    "nonzero": lambda module, weight: weight.nonzero(),
    "equal": lambda module, weight: torch.equal(weight, weight),
    "prog_bar": lambda module, weight: module.log("a", weight.sum(), prog_bar=True),
}


@pytest.mark.parametrize("what", WAITING)
def test_the_law_catches_a_read_at_every_step(what, overspent):
    reads, _ = overspent(EveryStep(WAITING[what]))
    assert reads >= STEPS - WARM


def test_the_law_catches_a_number_sent_at_every_step(overspent):
    """``log`` of a float copies it to the device."""
    act = EveryStep(lambda module, weight: module.log("a", 1.0, on_step=True, on_epoch=False, logger=False))
    assert overspent(act) == (0, STEPS - WARM)


def test_what_lies_on_the_host_is_free(overspent):
    act = EveryStep(lambda module, weight: float(torch.rand((), generator=torch.Generator().manual_seed(0)) + 1))
    assert overspent(act) == (0, 0)
