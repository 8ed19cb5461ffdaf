"""Gradient norms of a run with some bad batches: before and after clipping at a percentile, and how often it bites."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from _small import BLUE, GREY, ORANGE, Curve, axes, fit, save, start
from lightning.pytorch.loggers import CSVLogger

from firstlight.callbacks import GradientClipping, GradientMonitor
from firstlight.tracking import read_metrics


class Spiky(Curve):
    """Every so often the targets of a batch are wrong by far."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        step = self.global_step
        far = 12.0 if step % 23 == 11 else 0.0
        return super().training_step((batch[0], batch[1] + far), batch_idx)


with tempfile.TemporaryDirectory() as folder:
    start()
    logger = CSVLogger(folder, name="", version="")
    clipping, monitor = GradientClipping(percentile=80), GradientMonitor()
    fit(Spiky(0.02), clipping, monitor, max_epochs=16, logger=logger, log_every_n_steps=1)
    found = read_metrics(folder)

figure, (norms, rate) = axes(1.2, 0.6)
steps, before = found["grad/norm/total"]
norms.plot(steps, before, color=GREY, lw=0.9, label="grad/norm/total, before clipping")
norms.plot(*found["grad/clipped_norm"], color=BLUE, lw=1.6, label="grad/clipped_norm, after it (percentile=80)")
norms.set(ylabel="2-norm of the gradient", yscale="log", ylim=(0.2, 300))
norms.legend(frameon=False, loc="upper right", ncols=2, fontsize="small")
clipped = torch.tensor(found["grad/clip_rate"][1])
window = 32
mean = clipped.unfold(0, window, 1).mean(1)
rate.plot(steps[window - 1 :], mean.tolist(), color=ORANGE, lw=1.6)
rate.axhline(0.2, color="#333333", lw=0.8, ls=":")
rate.set(xlabel="optimizer step", ylabel=f"grad/clip_rate\n(mean of {window})", ylim=(0, 0.6), xlim=(0, len(steps)))
save(figure, __file__)
