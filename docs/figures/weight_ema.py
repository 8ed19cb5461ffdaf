"""The same training twice: validation of the weights themselves, and of their average."""

from __future__ import annotations

from typing import Any

from _small import BLUE, ORANGE, axes, data, fit, save, start
from lightning.pytorch import Callback

from firstlight.callbacks import WeightEMA


class Losses(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.steps.append(trainer.global_step)
        self.losses.append(float(trainer.callback_metrics["val/loss"]))


runs = {}
for name, callbacks in (("raw weights", []), ("average, decay=0.98", [WeightEMA(0.98)])):
    runs[name] = Losses()
    val = data(512, noise=0.0, seed=1, batch_size=512)
    settings = {"max_epochs": 1, "val_check_interval": 8, "train": data(2560), "val": val}
    fit(start(lr=0.02), *callbacks, runs[name], **settings)

figure, (panel,) = axes(1.2)
for (name, run), color in zip(runs.items(), (ORANGE, BLUE), strict=True):
    panel.plot(run.steps, run.losses, color=color, lw=1.6 if color == BLUE else 0.9, label=name)
panel.set(xlabel="optimizer step", ylabel="validation loss (squared error)", yscale="log", xlim=(0, 640))
panel.legend(frameon=False, loc="upper right")
save(figure, __file__)
