"""Batch norm and layer norm on digits: by batch size, in training against inference, and by learning rate."""

from __future__ import annotations

import math

import torch
from _page import LOOKS, Claims, Numbers, digits, evaluate, figure, mean, rows, run, spread, train
from matplotlib.figure import Figure
from torch import nn

from firstlight.initializers import initialize_
from firstlight.losses import cross_entropy_loss
from firstlight.optimizers import SGD, Adam

NORMS = {"batch norm": nn.BatchNorm1d, "layer norm": nn.LayerNorm, "none": nn.Identity}
SIZES = (2, 4, 8, 16, 64, 256)
RATES = [10 ** (k / 2) for k in range(-4, 4)]
STEPS = 400
SEEDS = range(3)


def network(norm: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    make = NORMS[norm]
    blocks = [(nn.Linear(64, 64), make(64), nn.ReLU()) for _ in range(4)]
    model = nn.Sequential(*[layer for block in blocks for layer in block], nn.Linear(64, 10))
    initialize_(model)
    return model


@torch.no_grad()
def in_training_mode(model: nn.Module, size: int) -> float:
    """Loss of held-out samples in batches of ``size``, with the statistics of each batch."""
    _, _, held_out, answers = digits()
    model.train()
    count = len(held_out) // size * size
    pairs = zip(held_out[:count].split(size), answers[:count].split(size), strict=True)
    return mean([cross_entropy_loss(model(x), y).item() for x, y in pairs])


def by_size(norm: str, size: int, seed: int) -> dict[str, float]:
    inputs, target, held_out, answers = digits()
    model = network(norm, seed)
    optimizer = Adam(model.parameters(), lr=1e-3)
    train(model, inputs, target, optimizer=optimizer, steps=STEPS, batch_size=size, seed=seed)
    loss, accuracy = evaluate(model, held_out, answers)  # before the running statistics see any of them
    return {"accuracy": 100 * accuracy, "eval": loss, "train": in_training_mode(model, size)}


def by_rate(norm: str, rate: float, seed: int) -> float:
    inputs, target, held_out, answers = digits()
    model = network(norm, seed)
    train(model, inputs, target, optimizer=SGD(model.parameters(), lr=rate), steps=150, seed=seed)
    loss, accuracy = evaluate(model, held_out, answers)
    return 100 * accuracy if math.isfinite(loss) else 10.0


def measure() -> Numbers:
    return {
        "size": {n: {size: [by_size(n, size, seed) for seed in SEEDS] for size in SIZES} for n in NORMS},
        "rate": {n: [[by_rate(n, rate, seed) for seed in SEEDS] for rate in RATES] for n in NORMS},
    }


def average(found: Numbers, norm: str, size: int, key: str) -> float:
    return mean([one[key] for one in found["size"][norm][str(size)]])


def workable(found: Numbers, norm: str) -> list[float]:
    """Rates that reach 90 % in the mean over the seeds."""
    return [rate for rate, seeds in zip(RATES, found["rate"][norm], strict=True) if mean(seeds) >= 90]


def claims(found: Numbers) -> Claims:
    batch = {size: average(found, "batch norm", size, "accuracy") for size in SIZES}
    gap = {
        size: average(found, "batch norm", size, "train") - average(found, "batch norm", size, "eval") for size in SIZES
    }
    same = max(
        abs(average(found, "layer norm", size, "train") - average(found, "layer norm", size, "eval"))
        for size in (2, 4)  # sizes that divide the 500 held-out samples
    )
    layer = [average(found, "layer norm", size, "accuracy") for size in (8, 64)]
    return [
        (
            "in batches of 2 batch norm is at least 10 points below its own accuracy in batches of 64",
            batch[2] < batch[64] - 10,
        ),
        (
            "with the statistics of 8 samples its loss is over 0.15 nats above that in eval mode; of 256, within 0.05",
            gap[8] > 0.15 and abs(gap[256]) < 0.05,
        ),
        ("layer norm gives the same in training and eval mode, to 0.001 nats", same < 1e-3),
        ("its accuracy in batches of 8 is within 3 points of that in batches of 64", abs(layer[0] - layer[1]) < 3),
        (
            "batch norm works at rates at least 3 times higher than the same network without",
            max(workable(found, "batch norm")) > 2.9 * max(workable(found, "none")),
        ),
    ]


def table(found: Numbers) -> str:
    body = []
    for size in SIZES:
        line: list[object] = [size]
        for norm in NORMS:
            line.append(spread([one["accuracy"] for one in found["size"][norm][str(size)]], 1))
        for key in ("train", "eval"):
            line.append(spread([one[key] for one in found["size"]["batch norm"][str(size)]], 2))
        body.append(line)
    head = ["batch size", *(f"{norm}: accuracy, %" for norm in NORMS)]
    head += ["batch norm: loss with the batch's statistics", "with running statistics"]
    body_rate = [[norm, f"{min(w):.2g}", f"{max(w):.2g}"] for norm in NORMS if (w := workable(found, norm))]
    return (
        rows(head, body)
        + "\n\nRates of plain SGD at which 150 steps of 64 reach 90 %:\n\n"
        + rows(["", "lowest", "highest"], body_rate)
    )


def draw(found: Numbers) -> Figure:
    drawn, (left, middle, right) = figure(2.9, 3)
    for look, norm in zip(LOOKS, NORMS, strict=False):
        left.plot(SIZES, [average(found, norm, size, "accuracy") for size in SIZES], **look, label=norm)
        right.plot(RATES, [mean(seeds) for seeds in found["rate"][norm]], **look)
    left.set(xscale="log", xlabel="batch size", ylabel="held-out accuracy, %")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    for look, key, label in ((LOOKS[3], "train", "batch's\nstatistics"), (LOOKS[0], "eval", "running\nstatistics")):
        middle.plot(SIZES, [average(found, "batch norm", size, key) for size in SIZES], **look, label=label)
    middle.set(xscale="log", yscale="log", xlabel="batch size", ylabel="held-out loss, nats")
    middle.set_title("batch norm", fontsize=9)
    middle.legend(frameon=False, fontsize=8, loc="upper right")
    right.set(xscale="log", xlabel="learning rate of SGD", ylabel="held-out accuracy, %")
    for panel in (left, middle, right):
        panel.xaxis.label.set_size(9)
        panel.yaxis.label.set_size(9)
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
