"""Held-out bits per byte while a small transformer learns, beside a trigram model."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib import pyplot as plt

from firstlight.callbacks import LearningRateScheduler
from firstlight.modules import LanguageModule
from firstlight.schedules import WarmupLinear

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from modules.language_models import CausalTransformer, topics, trigram_bits, windows_loader

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
torch.set_num_threads(1)
STEPS = 220


class Curve(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.bits: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.steps.append(trainer.global_step)
        self.bits.append(float(trainer.callback_metrics["val/bits_per_token"]))


train, held_out, kinds = topics()
seed_everything(3)
optimizer = functools.partial(torch.optim.AdamW, lr=5e-3, betas=(0.9, 0.95))
module = LanguageModule(CausalTransformer(kinds), torch.nn.Linear(64, kinds), optimizer=optimizer)
curve = Curve()
trainer = Trainer(
    max_steps=STEPS,
    max_epochs=-1,
    val_check_interval=10,
    check_val_every_n_epoch=None,
    num_sanity_val_steps=0,
    accelerator="cpu",
    gradient_clip_val=1.0,
    callbacks=[LearningRateScheduler(WarmupLinear(0.1)), curve],
    logger=False,
    enable_checkpointing=False,
)
loaders = windows_loader(train, 128, 16, shuffle=True), windows_loader(held_out, 128, 32, shuffle=False)
trainer.validate(module, loaders[1], verbose=False)
trainer.fit(module, *loaders)
trigram = trigram_bits(train, held_out, kinds)["Kneser-Ney"]
print(f"trigram {trigram:.3f}", *(f"{step}: {bits:.3f}" for step, bits in zip(curve.steps, curve.bits, strict=True)))  # noqa: T201

mpl.rcParams.update({"font.size": 9})
figure, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
axes.plot(curve.steps, curve.bits, color="tab:blue", label="transformer")
axes.axhline(trigram, color="tab:orange", linestyle="--", label=f"trigram, {trigram:.2f}")
axes.set(xlabel="training steps of 2048 bytes", ylabel="bits per byte, held out", ylim=(2.0, 4.5), xlim=(0, STEPS))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure.savefig(FOLDER / "language_module.png", dpi=160)
