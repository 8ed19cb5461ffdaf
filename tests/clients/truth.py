"""What a client script writes down about its own training, in float64 and one number at a time."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core import rank_zero
from torch import Tensor, nn


def norm(tensors: Any) -> float:
    return math.sqrt(sum(float((tensor.detach().double() ** 2).sum()) for tensor in tensors))


def block_of(name: str) -> str:
    return ".".join(name.split(".")[:-1][:2])


class Truth:
    """Called by the module from Lightning's own hooks, so that every way of running the script records the same."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.batches: list[float] = []
        self._open: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def before_step(self, module: nn.Module, optimizer: Any) -> None:
        inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {n: p for n, p in module.named_parameters() if id(p) in inside and p.grad is not None}
        step = {
            "optimizer": type(optimizer).__name__,
            "norm": norm(p.grad for p in named.values()),
            "nonfinite": [n for n, p in named.items() if not bool(torch.isfinite(p.grad).all())],
            "rates": [float(group["lr"]) for group in optimizer.param_groups],
            "batch": len(self.losses),
        }
        self.steps.append(step)
        self._open.append((step, {n: p.detach().clone() for n, p in named.items()}))

    def after_batch(self, module: nn.Module, loss: Tensor | float, batch: Any) -> None:
        for step, before in self._open:
            now = dict(module.named_parameters())
            step["ratios"] = {}
            for block in dict.fromkeys(block_of(name) for name in before):
                members = [name for name in before if block_of(name) == block]
                change = norm(now[n].detach().double() - before[n].double() for n in members)
                step["ratios"][block] = change / norm(before[n] for n in members)
        self._open = []
        self.losses.append(float(loss))
        self.batches.append(float(batch[0].double().sum()))

    def save(self, module: nn.Module) -> None:
        folder = Path.cwd()
        torch.save(module.state_dict(), folder / "end.pt")
        record = {"steps": self.steps, "losses": self.losses, "batches": self.batches}
        record["random"] = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        record["said_through"] = [rank_zero.log.name, str(rank_zero.rank_zero_deprecation_category)]
        names = ("firstlight", "lightning.pytorch", "pytorch_lightning")
        record["modules"] = sorted(name for name in sys.modules if name.split(".")[0] == "firstlight" or name in names)
        (folder / "truth.json").write_text(json.dumps(record))


def data(num_samples: int = 60) -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(7)
    target = torch.arange(num_samples) % 4
    centers = 2 * torch.randn(4, 8, generator=generator)
    inputs = centers[target] + torch.randn(num_samples, 8, generator=generator)
    return torch.utils.data.TensorDataset(inputs, target)
