"""A metric that gets worse before ``min_epochs`` and then recovers: where Lightning's run ends, and where ours does."""

from __future__ import annotations

import lightning.pytorch.callbacks as lightning_callbacks
import torch
from _small import BLUE, RED, Curve, axes, data, fit, save, start

from firstlight.callbacks import EarlyStopping

METRIC = [2.0, 1.6, 1.5, 1.9, 2.1, 2.0, 1.4, 1.1, 0.9, 0.78, 0.7, 0.65, 0.62, 0.6, 0.59, 0.58]
MIN_EPOCHS = 8


class Scripted(Curve):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(METRIC[self.current_epoch]))


ends = {}
for name, cls in (("Lightning's", lightning_callbacks.EarlyStopping), ("firstlight's", EarlyStopping)):
    start()
    stopping = cls("val/loss", patience=2)
    settings = {"max_epochs": len(METRIC), "min_epochs": MIN_EPOCHS, "limit_train_batches": 1}
    ends[name] = fit(Scripted(), stopping, val=data(4), **settings).current_epoch

figure, (panel,) = axes(1.2)
epochs = range(1, len(METRIC) + 1)
panel.plot(epochs, METRIC, color="#BBBBBB", lw=1, marker=".", label="the metric, one value an epoch")
for (name, end), color, width in zip(ends.items(), (RED, BLUE), (5, 1.8), strict=True):
    panel.plot(epochs[:end], METRIC[:end], color=color, lw=width, alpha=0.5 if width > 2 else 1, label=f"{name} run")
    panel.plot(end, METRIC[end - 1], marker="s", color=color, ms=8)
panel.annotate("patience is used up", (5, METRIC[4]), (5.4, 2.45), arrowprops={"arrowstyle": "->"}, va="center")
panel.axvline(MIN_EPOCHS, color="#333333", lw=0.8, ls=":")
panel.text(MIN_EPOCHS + 0.1, 0.45, f"min_epochs={MIN_EPOCHS}")
panel.set(xlabel="epoch", ylabel="val/loss", xlim=(0.8, len(METRIC) + 0.3), ylim=(0.4, 2.6))
panel.legend(frameon=False, loc="upper right")
save(figure, __file__)
