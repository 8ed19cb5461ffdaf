"""Six optimizers by learning rate: on digits, and on a table whose columns differ in scale by 200 000."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from _page import LOOKS, Claims, Numbers, digits, evaluate, figure, mean, median, perceptron, rows, run, spread, train
from matplotlib.figure import Figure
from torch import nn

from firstlight.initializers import initialize_
from firstlight.optimizers import LAMB, SGD, Adam, AdamW, RMSprop

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": SGD,
    "SGD, momentum 0.9": lambda p, lr: SGD(p, lr=lr, momentum=0.9),
    "RMSprop": RMSprop,
    "Adam": Adam,
    "AdamW": lambda p, lr: AdamW(p, lr=lr, weight_decay=0.01),
    "LAMB": lambda p, lr: LAMB(p, lr=lr, weight_decay=0.01),
}
RATES = [10 ** (k / 2) for k in range(-8, 2)]
RAW_RATES = [10 ** (k / 2) for k in range(-12, 1)]
SEEDS = range(5)
RAW_SEEDS = range(3)


def on_digits(make: Callable[..., Any], rate: float, seed: int) -> tuple[float, float]:
    inputs, target, held_out, answers = digits()
    torch.manual_seed(seed)
    model = perceptron(64, 64, 64, 10)
    initialize_(model)
    train(model, inputs, target, optimizer=make(model.parameters(), lr=rate), steps=200, seed=seed)
    loss, accuracy = evaluate(model, held_out, answers)
    return (loss if math.isfinite(loss) else math.inf), accuracy


def on_raw_columns(make: Callable[..., Any], rate: float, seed: int) -> float:
    """Logistic regression on measurements as they come, some in hundredths and some in hundreds."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    inputs, target = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    torch.manual_seed(seed)
    model = nn.Linear(30, 2)
    losses = train(
        model, inputs, target, optimizer=make(model.parameters(), lr=rate), steps=400, batch_size=len(inputs)
    )
    return losses[-1] if math.isfinite(losses[-1]) else math.inf


def lamb_step() -> float:
    """How far the relative step of any weight is from the rate, over 50 steps of LAMB at 0.01."""
    inputs, target, _, _ = digits()
    torch.manual_seed(0)
    model = perceptron(64, 64, 10)
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    before = [weight.detach().clone() for weight in weights]
    off = []

    def look(_step: int) -> None:
        for old, weight in zip(before, weights, strict=True):
            new = weight.detach()
            off.append(abs(float((new - old).norm() / old.norm()) / 0.01 - 1))
            old.copy_(new)

    optimizer = LAMB(model.parameters(), lr=0.01, weight_decay=0.01)
    train(model, inputs, target, optimizer=optimizer, steps=50, after_step=look)
    return max(off)


def measure() -> Numbers:
    found: Numbers = {"digits": {}, "raw": {}, "lamb_off": lamb_step()}
    for name, make in OPTIMIZERS.items():
        runs = [[on_digits(make, rate, seed) for seed in SEEDS] for rate in RATES]
        found["digits"][name] = {
            "loss": [[loss for loss, _ in seeds] for seeds in runs],
            "accuracy": [[accuracy for _, accuracy in seeds] for seeds in runs],
        }
        found["raw"][name] = [[on_raw_columns(make, rate, seed) for seed in RAW_SEEDS] for rate in RAW_RATES]
    return found


def best(losses: list[list[float]]) -> int:
    return min(range(len(losses)), key=lambda i: mean(losses[i]))


def width(losses: list[list[float]]) -> float:
    """Decades of learning rate within twice the best loss."""
    centre = [median(seeds) for seeds in losses]
    return sum(value <= 2 * min(centre) for value in centre) / 2


def claims(found: Numbers) -> Claims:
    tuned = {name: best(row["loss"]) for name, row in found["digits"].items()}
    accuracy = [100 * mean(found["digits"][name]["accuracy"][i]) for name, i in tuned.items()]
    raw = {name: min(mean(seeds) for seeds in row) for name, row in found["raw"].items()}
    return [
        ("each at its best rate, all six are within 2 points of accuracy on digits", max(accuracy) - min(accuracy) < 2),
        ("the best rate of SGD is at least 30 times that of AdamW", RATES[tuned["SGD"]] > 29 * RATES[tuned["AdamW"]]),
        ("on raw columns the best loss of Adam is under half of SGD's", raw["Adam"] < raw["SGD"] / 2),
        ("LAMB moves every weight by its rate times the length of the weight, to 0.1 %", found["lamb_off"] < 1e-3),
    ]


def table(found: Numbers) -> str:
    body = []
    for name, row in found["digits"].items():
        i = best(row["loss"])
        raw = found["raw"][name]
        j = best(raw)
        accuracy = spread([100 * value for value in row["accuracy"][i]], 1)
        body.append([name, f"{RATES[i]:.2g}", spread(row["loss"][i], 3), accuracy, f"{width(row['loss']):.1f}"])
        body[-1] += [f"{RAW_RATES[j]:.2g}", spread(raw[j], 3)]
    head = ["optimizer", "digits: best rate", "held-out loss", "accuracy, %", "decades of rate within twice the best"]
    return rows([*head, "raw columns: best rate", "training loss"], body)


def draw(found: Numbers) -> Figure:
    drawn, (left, right) = figure(3.4, 2)
    for look, name in zip(LOOKS, OPTIMIZERS, strict=False):
        left.plot(RATES, [median(seeds) for seeds in found["digits"][name]["loss"]], **look, label=name)
        right.plot(RAW_RATES, [median(seeds) for seeds in found["raw"][name]], **look)
    left.set(xscale="log", yscale="log", ylim=(0.06, 4), xlabel="learning rate", ylabel="held-out loss, nats")
    left.set_title("digits", fontsize=9)
    right.set(xscale="log", yscale="log", ylim=(0.06, 30), xlabel="learning rate", ylabel="training loss, nats")
    right.set_title("columns of very different scale", fontsize=9)
    drawn.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
