"""The rates of an unbroken run, of one stopped and resumed, and of one resumed with twice as many epochs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _small import BLUE, GREEN, ORANGE, axes, fit, save, start
from lightning.pytorch import Callback

from firstlight.callbacks import LearningRateScheduler
from firstlight.schedules import WarmupCosine


class Rates(Callback):
    def __init__(self, stop: Path | None = None) -> None:
        self.steps: list[int] = []
        self.rates: list[float] = []
        self.stop = stop

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append(trainer.global_step)
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.stop is not None and trainer.current_epoch == 1:
            trainer.save_checkpoint(self.stop)


with tempfile.TemporaryDirectory() as folder:
    stop = Path(folder) / "two_epochs.ckpt"
    runs = {}
    for name, epochs, ckpt in (("unbroken", 5, None), ("resumed", 5, stop), ("longer", 10, stop)):
        runs[name] = Rates(stop if ckpt is None else None)
        fit(start(), LearningRateScheduler(WarmupCosine(0.1)), runs[name], max_epochs=epochs, ckpt=ckpt)

figure, (panel,) = axes(1.2)
panel.plot(runs["unbroken"].steps, runs["unbroken"].rates, color=BLUE, lw=5, alpha=0.35, label="unbroken, 5 epochs")
panel.plot(runs["resumed"].steps, runs["resumed"].rates, color=ORANGE, lw=1.5, label="stopped after 2 epochs, resumed")
panel.plot(runs["longer"].steps, runs["longer"].rates, color=GREEN, lw=1.5, ls="--", label="resumed with max_epochs=10")
panel.axvline(32, color="#333333", lw=0.8, ls=":")
panel.set(xlabel="optimizer step", ylabel="learning rate", xlim=(0, 160), ylim=(0, 0.105))
panel.legend(frameon=False, loc="upper right")
save(figure, __file__)
