"""Tests leave the room as they found it."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

# Tensors here are tiny: a second thread costs more than it gives, and far more on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _leave_no_trace(tmp_path, monkeypatch) -> Iterator[None]:
    """Start every test from the same seeds in an empty folder; fail one that leaks variables, threads or modes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    # Lightning sets these for its own subprocesses
    tolerated = (
        "PYTEST_",
        "PYTORCH_",
        "PL_",
        "LOCAL_RANK",
        "NODE_RANK",
        "WORLD_SIZE",
        "MASTER_",
        "KMP_",
        "TORCHINDUCTOR_",
        "WANDB_",
    )
    before = dict(os.environ)
    threads = threading.active_count()
    yield
    leaked = {key for key in os.environ.keys() ^ before.keys() if not key.startswith(tolerated)}
    assert not leaked, f"environment variables leaked: {leaked}"
    assert torch.is_grad_enabled(), "gradients left off"
    assert not torch.are_deterministic_algorithms_enabled(), "deterministic mode left on"
    assert torch.get_default_dtype() == torch.float32, "default dtype left changed"
    if threading.active_count() > threads + 2:
        gc.collect()  # loaders whose workers lived on, in cycles of a trainer that is gone
    assert threading.active_count() <= threads + 2, f"threads leaked: {threading.enumerate()}"
    for key in os.environ.keys() - before.keys():
        del os.environ[key]
