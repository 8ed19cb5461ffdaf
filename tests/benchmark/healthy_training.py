"""Healthy: ways to train that rules made for plain ones take for ill."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR

from benchmark.case import Case, Knobs, Program
from benchmark.common import ArrayData, Classifier, MakeOptimizer, digits, mlp, pretrained


class FrozenBackbone(Classifier):
    """Trains a head on features that stay."""

    def __init__(self, backbone: nn.Module, head: nn.Module, optimizer: MakeOptimizer) -> None:
        super().__init__(head, optimizer)
        self.backbone = backbone.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.backbone(x))


def frozen(buggy: bool, seed: int, knobs: Knobs) -> Program:
    width = knobs.width(64)
    backbone = pretrained(64, width, width, 5, seed=seed, digits_a_class=2)[:-1]
    module = FrozenBackbone(backbone, nn.Linear(width, 10), partial(Adam, lr=knobs.lr(1e-2)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


def tiny_batches(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(32), 10), partial(SGD, lr=knobs.lr(0.01)))
    return module, ArrayData(digits, batch_size=knobs.batch(2), seed=seed), {}


class WarmupCosine(Classifier):
    """Warms up over 80 steps, then follows half a cosine to the end of the run."""

    def factor(self, step: int) -> float:
        if step < 80:
            return step / 80
        return 0.5 * (1 + math.cos(math.pi * (step - 80) / max(1, self.trainer.estimated_stepping_batches - 80)))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [{"scheduler": LambdaLR(optimizer, self.factor), "interval": "step"}]


def warmup(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = WarmupCosine(mlp(64, knobs.width(64), 10), partial(SGD, lr=knobs.lr(0.5)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


def accumulation(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(64), 10), partial(Adam, lr=knobs.lr(3e-3)))
    return module, ArrayData(digits, batch_size=knobs.batch(16), seed=seed), {"accumulate_grad_batches": 8}


def half_precision(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(64), knobs.width(64), 10), partial(Adam, lr=knobs.lr(1e-3)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {"precision": "bf16-mixed"}


class Restarts(Classifier):
    """Falls to zero and begins anew every 130 steps."""

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=130)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def restarts(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Restarts(mlp(64, knobs.width(64), 10), partial(SGD, lr=knobs.lr(0.2), momentum=0.9))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


healthy: Callable[..., Case] = partial(Case, family="healthy")

CASES = [
    healthy(id="G10", title="digits, frozen backbone", make=frozen, epochs=12, reference=0.88),
    healthy(id="G11", title="digits, two samples a step", make=tiny_batches, epochs=4, reference=0.92),
    healthy(id="G12", title="digits, warm-up to 0.5", make=warmup, epochs=12, reference=0.97),
    healthy(id="G13", title="digits, accumulation", make=accumulation, epochs=15, reference=0.95),
    healthy(id="G14", title="digits, bfloat16", make=half_precision, epochs=12, reference=0.95),
    healthy(id="G20", title="digits, restarts", make=restarts, epochs=15, reference=0.98),
]
