"""Does what is learned on one half of the samples hold for the other? Asked only where neighbours tell nothing."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Adam

from firstlight.checks import Evidence
from firstlight.preflight._bench import Bench
from firstlight.preflight._subject import Subject
from firstlight.preflight._twin import Plan, Stop, fit, twin_of

_STEPS, _EVERY, _MOST_BATCHES = 400, 40, 24


class _HeldOut(Callback):
    """Reads the loss on held-out batches now and then."""

    def __init__(self, batches: list[Any], deadline: float) -> None:
        self.batches, self.deadline = batches, deadline
        self.losses: list[float] = []
        self.taken = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.taken += 1
        if self.taken % _EVERY == 0:
            bench = Bench(trainer, pl_module, self.batches, Plan())
            losses = [float(loss.detach()) for b in self.batches for loss in bench.run(b, training=False).losses]
            self.losses.append(sum(losses) / max(1, len(losses)))
        if time.monotonic() > self.deadline:
            trainer.should_stop = True


def probe_held_out(subject: Subject, evidence: Evidence, *, deadline: float) -> None:
    """Train a copy by Adam on half of the batches; the gain is what the other half's loss falls below its start."""
    if evidence.get("labels/p_value", 0.0) <= 0.01 or not subject.module.automatic_optimization:
        return
    batches = subject.train[: 2 * _MOST_BATCHES]
    half = len(batches) // 2
    if half < 2:
        return
    twin = twin_of(subject.module)
    shadows: Any = twin
    shadows.configure_optimizers = lambda: Adam([p for p in twin.parameters() if p.requires_grad], lr=3e-3)
    plan = Plan(max_epochs=-1, num_batches=half, precision=subject.plan.precision, device=subject.plan.device)
    watch = _HeldOut(batches[half:], deadline)
    fit(twin, plan, batches[:half], [watch, Stop(_STEPS)])
    constant = evidence.get("loss/constant", math.nan)
    start = max(constant, evidence.get("loss/level", constant)) if math.isfinite(constant) else math.nan
    finite = [loss for loss in watch.losses if math.isfinite(loss)]
    if finite and math.isfinite(start) and start > 0:
        evidence.add({"labels/held_out_gain": 1.0 - min(finite) / start})
