"""Laws of run_preflight over set-ups of every kind: it changes nothing, and of a sound set-up it says nothing."""

from __future__ import annotations

import builtins
import io
import logging
import os
import random
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from preflight.setups import SETUPS, Setup, made
from torch import nn
from torch.utils.data import DataLoader

from firstlight.checks import Severity
from firstlight.preflight import PreflightReport, run_preflight
from helpers import Plain, TwoOptimizers, classes_data, loader, network, same, trainer, weights

every_setup = pytest.mark.parametrize("name", SETUPS)


def of_the_process() -> dict[str, Any]:
    """Return what a preflight could leave behind outside of the module."""
    return {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "folder": Path.cwd(),
        "files": sorted(str(path) for path in Path.cwd().rglob("*")),
        "open": (builtins.open, io.open, torch.save),
        "levels": {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric", "root")},
        "warnings": list(warnings.filters),
        "distributed": (torch.distributed.is_initialized, torch.distributed.is_initialized()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "numbers": (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()),
    }


def of_the_module(module: LightningModule) -> dict[str, Any]:
    """Return all of a module but the values of its tensors: flags, gradients, hooks, attributes, its Trainer."""
    return {
        "training": {name: part.training for name, part in module.named_modules()},
        "attributes": {name: {k: id(v) for k, v in vars(part).items()} for name, part in module.named_modules()},
        "hooks": {
            name: [len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks)]
            for name, part in module.named_modules()
        },
        "parameters": {
            name: (id(p), p.data_ptr(), p._version, p.requires_grad, id(p.grad), len(p._backward_hooks or ()))
            for name, p in module.named_parameters()
        },
        "buffers": {name: (id(b), b._version) for name, b in module.named_buffers()},
        "gradients": {name: p.grad.to_dense().tolist() for name, p in module.named_parameters() if p.grad is not None},
        "trainer": module._trainer,
    }


def positions(data: Any) -> list[Any]:
    """Return the states of the loaders' own generators."""
    loaders = data if isinstance(data, tuple) else (data,)
    return [
        (part._iterator, None if part.generator is None else part.generator.get_state().tolist())
        for part in loaders
        if isinstance(part, DataLoader)
    ]


def left_as_it_was(setup: Setup) -> PreflightReport:
    module, data = setup.module, setup.data
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5 + number)
    next(module.children()).training = False  # the flag alone: its layers still train
    writes = {"logger": CSVLogger("logs"), "enable_checkpointing": True}
    run = trainer(**({"max_epochs": 30} | writes | setup.trainer))
    threads = set(threading.enumerate())
    before = weights(module), of_the_module(module), positions(data), of_the_process()
    report = run_preflight(module, data, trainer=run)
    after = weights(module), of_the_module(module), positions(data), of_the_process()
    assert same(before[0], after[0])
    for one, other in zip(before[1:], after[1:], strict=True):
        assert one == other
    assert set(threading.enumerate()) <= threads  # not their number: one of somebody else's may end meanwhile
    return report


@every_setup
def test_nothing_is_changed_nothing_is_blamed_and_what_was_not_asked_is_told(name: str):
    report = left_as_it_was(made(name))
    assert [str(found) for found in report.findings if found.severity >= Severity.WARNING] == []
    assert (report.exit_code, report.crashed) == (0, {})
    assert any(result.status == "passed" for result in report.results)
    for code, reason in report.skipped.items():
        assert reason, code
        assert not reason.startswith("nothing measured"), (code, reason)


def test_manual_optimization_with_two_optimizers():
    report = left_as_it_was(Setup(TwoOptimizers(), loader(num_samples=256), {}))
    assert not report.crashed


def test_an_optimizer_of_the_originals_parameters_is_refused():
    class Foreign(Plain):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(kept, lr=0.1)

    module = Foreign(network())
    kept = list(module.net.parameters())
    report = left_as_it_was(Setup(module, loader(num_samples=256), {}))
    reasons = {code: report.skipped[code] for code in ("FL002", "FL003", "FL301", "FL401", "FL503", "FL601")}
    assert all("the original's parameters even on a copy" in reason for reason in reasons.values()), reasons
    assert not report.crashed


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_next_batches_are_those_that_would_have_come(workers: int):
    def data() -> DataLoader:
        return DataLoader(
            classes_data(64),
            batch_size=8,
            shuffle=True,
            generator=torch.Generator().manual_seed(5),
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def epochs(data: DataLoader, number: int) -> list[Any]:
        return [batch[1].tolist() for _ in range(number) for batch in data]

    expected = epochs(data(), 3)
    looked_at = data()
    begun = epochs(looked_at, 1)
    torch.manual_seed(11)
    run_preflight(Plain(), looked_at, trainer=trainer(max_epochs=1))
    assert begun + epochs(looked_at, 2) == expected


def test_a_trunk_in_eval_mode_stays_frozen():
    module = Plain(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)))
    module.net[1].eval().requires_grad_(False)
    left_as_it_was(Setup(module, loader(num_samples=128), {}))
    assert not module.net[1].training
    assert module.net[1].num_batches_tracked == 0
