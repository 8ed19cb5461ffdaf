"""Batch size: how noisy a gradient is, and what a target costs in passes over the data and in steps."""

from __future__ import annotations

import math

import torch
from _page import BLUE, GREY, LOOKS, Claims, Numbers, digits, evaluate, figure, mean, perceptron, rows, run, spread
from _page import batches as batches_of
from matplotlib.figure import Figure
from torch.func import functional_call, grad, vmap

from firstlight.initializers import initialize_
from firstlight.losses import cross_entropy_loss
from firstlight.optimizers import SGD

SIZES = (1, 8, 32, 128, 512, 1297)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
TARGET = 0.1  # nats, mean over the training set
SEEDS = range(1, 6)
MOST = {1: 6, 8: 15, 32: 40, 128: 120, 512: 300, 1297: 600}  # passes


def network(seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    model = perceptron(64, 32, 10)
    initialize_(model)
    return model


def noise() -> Numbers:
    """Distance of a batch's gradient from the whole one, over the length of the whole one."""
    inputs, target, _, _ = digits()
    model = network(0)
    weights = dict(model.named_parameters())

    def loss(weights, x, y):
        return cross_entropy_loss(functional_call(model, weights, (x[None],)), y[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, target)
    each = torch.cat([g.flatten(1) for g in found.values()], 1).detach()
    whole = each.mean(0)
    count = len(each)
    variance = (each - whole).square().sum(1).mean() * count / (count - 1)
    generator = torch.Generator().manual_seed(0)
    seen, theory = [], []
    for size in SIZES:
        drawn = [each[torch.randperm(count, generator=generator)[:size]].mean(0) for _ in range(200)]
        seen.append(float(torch.stack([(g - whole).square().sum() for g in drawn]).mean().sqrt() / whole.norm()))
        theory.append(float((variance / size * (1 - size / count)).sqrt() / whole.norm()))
    return {"seen": seen, "theory": theory}


def passes(size: int, rate: float, seed: int, most: float) -> float:
    """Passes over the data until the training loss is at the target; infinity where it does not get there."""
    inputs, target, _, _ = digits()
    model = network(seed)
    optimizer = SGD(model.parameters(), lr=rate)
    look = max(1, len(inputs) // (size * 8))
    steps = int(most * len(inputs) / size)
    for step, chosen in enumerate(batches_of(len(inputs), size, steps, torch.Generator().manual_seed(seed)), 1):
        loss = cross_entropy_loss(model(inputs[chosen]), target[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % look == 0 and evaluate(model, inputs, target)[0] <= TARGET:
            return step * size / len(inputs)
    return math.inf


def measure() -> Numbers:
    inputs = digits()[0]
    found: Numbers = {"noise": noise(), "size": {}}
    for size in SIZES:
        best, rate = math.inf, RATES[0]
        for tried in RATES:
            needed = passes(size, tried, 0, min(best, MOST[size]))
            if needed < best:
                best, rate = needed, tried
        needed = [passes(size, rate, seed, 3 * MOST[size]) for seed in SEEDS]
        found["size"][size] = {"rate": rate, "passes": needed, "steps": [n * len(inputs) / size for n in needed]}
    return found


def claims(found: Numbers) -> Claims:
    seen, theory = found["noise"]["seen"], found["noise"]["theory"]
    near = all(abs(a / b - 1) < 0.1 for a, b in zip(seen[:-1], theory[:-1], strict=True))
    passes = {int(k): mean(v["passes"]) for k, v in found["size"].items()}
    steps = {int(k): mean(v["steps"]) for k, v in found["size"].items()}
    return [
        ("the noise of a batch's gradient is within 10 % of σ/√B · √(1 − B/N)", near and seen[-1] < 1e-4),
        ("from batches of 1 to 32 the steps to the target fall by more than 5", steps[1] > 5 * steps[32]),
        (
            "from batches of 128 to the whole set, ten times larger, they fall by less than 3",
            steps[128] < 3 * steps[1297],
        ),
        ("and the passes over the data rise by more than 3", passes[1297] > 3 * passes[128]),
    ]


def table(found: Numbers) -> str:
    body = []
    for (size, row), noise in zip(found["size"].items(), found["noise"]["seen"], strict=True):
        body.append([size, f"{noise:.2f}", f"{row['rate']:g}", spread(row["passes"], 1), spread(row["steps"], 0)])
    return rows(["batch size", "noise / gradient", "best rate", "passes over the data", "steps"], body)


def draw(found: Numbers) -> Figure:
    drawn, (left, right) = figure(2.9, 2)
    left.plot(SIZES[:-1], found["noise"]["theory"][:-1], color=GREY, lw=1.2, label="σ/√B · √(1 − B/N)")
    left.plot(SIZES[:-1], found["noise"]["seen"][:-1], color=BLUE, marker="o", ls="", ms=5, label="measured")
    left.set(xscale="log", yscale="log", ylim=(0.06, 20), xlabel="batch size", ylabel="noise / length of the gradient")
    left.axhline(1, color="#333333", lw=0.8, ls=":")
    left.legend(frameon=False, fontsize=8)
    for key, look, label in (("passes", LOOKS[1], "passes over the data"), ("steps", LOOKS[0], "optimizer steps")):
        values = [row[key] for row in found["size"].values()]
        centre = [mean(v) for v in values]
        right.plot(SIZES, centre, **look, label=label)
        right.fill_between(SIZES, [min(v) for v in values], [max(v) for v in values], color=look["color"], alpha=0.2)
    right.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"until the loss is {TARGET}", ylim=(0.5, 2e4))
    right.legend(frameon=False, fontsize=8, loc="upper right")
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
