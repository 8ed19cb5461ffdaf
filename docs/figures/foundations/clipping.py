"""Clipping by norm, by value and by percentile: a recurrent network on text, over learning rates."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from _page import LOOKS, Claims, Numbers, figure, mean, rows, run, spread
from _page import text as help_texts
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import GradientClipping
from firstlight.initializers import initialize_
from firstlight.losses import SequenceCrossEntropyLoss
from firstlight.modules import SupervisedModule
from firstlight.optimizers import SGD

NORM, VALUE = 0.5, 0.02
WAYS: dict[str, Callable[[], GradientClipping] | None] = {
    "none": None,
    f"norm, {NORM}": lambda: GradientClipping(max_norm=NORM, on_nonfinite="ignore"),
    f"value, {VALUE}": lambda: GradientClipping(max_value=VALUE, on_nonfinite="ignore"),
    "percentile, 50": lambda: GradientClipping(percentile=50, on_nonfinite="ignore"),
}
RATES = (0.1, 0.3, 1.0, 3.0)
LENGTH, STEPS = 48, 150
SEEDS = range(2)


class Recurrent(nn.Module):
    """A tanh network whose recurrent weights start 1.2 times as long as orthogonal ones: gradients grow backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.cell = nn.RNN(32, 64, batch_first=True)
        self.head = nn.Linear(64, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cell(self.embedding(tokens))[0])


class Watch(Callback):
    """Keeps losses, gradient norms, and the cosine between the gradient and itself clipped by value."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.cosines: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        flat = torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None])
        self.norms.append(flat.norm().item())
        self.cosines.append(torch.cosine_similarity(flat, flat.clamp(-VALUE, VALUE), dim=0).item())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def one(way: str, rate: float, seed: int) -> dict[str, Any]:
    data = help_texts()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - LENGTH - 1, (STEPS * 16,), generator=generator)
    windows = data[starts[:, None] + torch.arange(LENGTH + 1)].long().clamp(max=127)
    torch.manual_seed(seed)
    model = Recurrent()
    initialize_(model)
    with torch.no_grad():
        model.cell.weight_hh_l0.mul_(1.2)
    optimizer = functools.partial(SGD, lr=rate, momentum=0.9)
    module = SupervisedModule(model, SequenceCrossEntropyLoss(), optimizer=optimizer)
    watch, make = Watch(), WAYS[way]
    trainer = Trainer(
        callbacks=[watch, make()] if make is not None else [watch],
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(windows[:, :-1], windows[:, 1:]), 16))
    last = mean(watch.losses[-20:])
    return {
        "loss": last if math.isfinite(last) else math.inf,
        "losses": [round(value, 3) for value in watch.losses],
        "norms": [float(f"{value:.3g}") for value in watch.norms],
        "cosine": mean(watch.cosines),
    }


def measure() -> Numbers:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: Numbers = {way: {rate: [one(way, rate, seed) for seed in SEEDS] for rate in RATES} for way in WAYS}
    for way, by_rate in found.items():
        for rate, runs in by_rate.items():
            for seed, one_run in enumerate(runs):
                if seed or (way, rate) not in (("none", 1.0), (f"norm, {NORM}", 1.0)):  # curves of one pair are shown
                    del one_run["losses"], one_run["norms"]
    return found


def losses(found: Numbers, way: str) -> list[float]:
    return [mean([one["loss"] for one in runs]) for runs in found[way].values()]


def claims(found: Numbers) -> Claims:
    plain, norm = losses(found, "none"), losses(found, f"norm, {NORM}")
    cosine = mean([one["cosine"] for one in found[f"value, {VALUE}"]["1.0"]])
    norms, clipped = (found[way]["1.0"][0]["norms"] for way in ("none", f"norm, {NORM}"))
    half = losses(found, "percentile, 50")
    return [
        (
            "at a rate of 1 clipping by norm ends below 4 nats, and no clipping above 8, worse than a guess",
            norm[2] < 4 and plain[2] > 8,
        ),
        (
            "each at its best of the four rates, clipping by norm ends at least 0.2 nats below no clipping",
            min(norm) < min(plain) - 0.2,
        ),
        ("clipping at the median norm does not save the run at a rate of 1: its norms are all large", half[2] > 8),
        (
            "the largest norm of the run at a rate of 1 is more than twice that of the clipped run",
            max(norms) > 2 * max(clipped),
        ),
        ("clipping by value turns the gradient: the cosine with the whole one is below 0.95", cosine < 0.95),
    ]


def table(found: Numbers) -> str:
    body = []
    for way, by_rate in found.items():
        cells = [spread([one["loss"] for one in runs], 2) for runs in by_rate.values()]
        turned = f"{mean([one['cosine'] for one in by_rate['1.0']]):.2f}" if way.startswith("value") else "1"
        body.append([way, *cells, turned if way != "none" else ""])
    return rows(["clipping", *(f"rate {rate:g}" for rate in RATES), "cosine with the gradient, rate 1"], body)


def draw(found: Numbers) -> Figure:
    drawn, (left, right) = figure(3.0, 2)
    for look, way in zip((LOOKS[1], LOOKS[0]), ("none", f"norm, {NORM}"), strict=True):
        norms = found[way]["1.0"][0]["norms"]
        left.plot(norms, **look | {"markevery": 20, "lw": 1.0}, label=way)
    left.axhline(NORM, color="#333333", lw=0.8, ls=":")
    left.set(yscale="log", ylim=(0.3, 60), xlabel="optimizer step", ylabel="norm of the gradient, unclipped")
    left.set_title("rate 1", fontsize=9)
    left.legend(frameon=False, fontsize=8, loc="upper right")
    for look, way in zip((LOOKS[1], LOOKS[0], LOOKS[2], LOOKS[3]), found, strict=True):
        right.plot(RATES, losses(found, way), **look, label=way)
    right.axhline(math.log(128), color="#333333", lw=0.8, ls=":")
    right.text(1.7, 4.2, "a guess", fontsize=8)
    right.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="nats per byte, last 20 steps", ylim=(2, 1000))
    right.legend(frameon=False, fontsize=8, loc="upper left")
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
