"""Fourteen hyperparameters, one at a time over the range in which people try them: what each can spoil."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from _page import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Claims,
    Numbers,
    digits,
    evaluate,
    figure,
    mean,
    perceptron,
    rows,
    run,
    train,
)
from matplotlib.figure import Figure
from torch import nn

from firstlight.initializers import InitPlan, InitRule, initialize_
from firstlight.losses import CrossEntropyLoss
from firstlight.optimizers import SGD, Adam, AdamW, RMSprop, param_groups
from firstlight.schedules import Constant, CosineAnnealing, Schedule, StepDecay, WarmupCosine

COUNT = 400
SEEDS = range(3)
HE = InitPlan.recommended()


@dataclass(frozen=True)
class Recipe:
    rate: float = 3e-3
    batch_size: int = 32
    epochs: float = 12
    depth: int = 2
    width: int = 64
    optimizer: str = "AdamW"
    schedule: Schedule = WarmupCosine(0.05)  # noqa: RUF009  frozen
    decay: float = 0.01
    dropout: float = 0.0
    smoothing: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    init: str = "He"


# By priority: the name, the argument, the values.
RANGES: list[tuple[int, str, str, tuple[Any, ...]]] = [
    (1, "learning rate", "rate", (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)),
    (1, "batch size", "batch_size", (4, 16, 64, 256)),
    (1, "epochs", "epochs", (1, 3, 10, 30)),
    (2, "depth", "depth", (1, 2, 4, 8)),
    (2, "width", "width", (8, 32, 128)),
    (2, "optimizer", "optimizer", ("SGD", "RMSprop", "Adam", "AdamW")),
    (2, "schedule", "schedule", (Constant(), StepDecay(0.5), CosineAnnealing(), WarmupCosine(0.1))),
    (3, "weight decay", "decay", (0.0, 0.01, 0.1, 1.0)),
    (3, "dropout", "dropout", (0.0, 0.2, 0.5)),
    (3, "label smoothing", "smoothing", (0.0, 0.05, 0.1)),
    (4, "beta 1", "beta1", (0.8, 0.9, 0.95)),
    (4, "beta 2", "beta2", (0.95, 0.99, 0.999)),
    (4, "epsilon", "eps", (1e-10, 1e-8, 1e-6, 1e-4)),
    (4, "initializer", "init", ("torch's", "He", "Xavier", "orthogonal")),
]


def optimizer_of(recipe: Recipe, groups: Any) -> torch.optim.Optimizer:
    betas = (recipe.beta1, recipe.beta2)
    if recipe.optimizer == "SGD":  # at thirty times the rate, where its valley is (see the page of optimizers)
        return SGD(groups, lr=30 * recipe.rate, momentum=0.9)
    if recipe.optimizer == "RMSprop":
        return RMSprop(groups, lr=recipe.rate, eps=recipe.eps)
    return (Adam if recipe.optimizer == "Adam" else AdamW)(groups, lr=recipe.rate, betas=betas, eps=recipe.eps)


def held_out_loss(recipe: Recipe, seed: int) -> float:
    inputs, target, held_out, answers = digits()
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:COUNT]
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for layer in perceptron(64, *[recipe.width] * recipe.depth, 10):
        layers += [layer, nn.Dropout(recipe.dropout)] if isinstance(layer, nn.ReLU) else [layer]
    model = nn.Sequential(*layers)
    plans = {
        "He": HE,
        "Xavier": InitPlan([InitRule("xavier", gain=1.0)]),
        "orthogonal": InitPlan([InitRule("orthogonal")]),
    }
    if recipe.init in plans:
        initialize_(model, plans[recipe.init])
    steps = max(1, round(recipe.epochs * COUNT / recipe.batch_size))
    decay = recipe.decay if recipe.optimizer == "AdamW" else 0.0
    optimizer = optimizer_of(recipe, param_groups(model, weight_decay=decay))
    loss = CrossEntropyLoss(label_smoothing=recipe.smoothing)
    train(
        model, inputs[chosen], target[chosen], optimizer=optimizer, steps=steps, batch_size=recipe.batch_size,
        seed=seed, loss=loss, factor=lambda step: recipe.schedule.factor(step, steps),
    )  # fmt: skip
    value = evaluate(model, held_out, answers)[0]
    return min(value, 10.0) if math.isfinite(value) else 10.0


def measure() -> Numbers:
    base = [held_out_loss(Recipe(), seed) for seed in SEEDS]
    found = {}
    for _, name, argument, values in RANGES:
        recipes = [replace(Recipe(), **{argument: value}) for value in values]
        found[name] = [base if r == Recipe() else [held_out_loss(r, seed) for seed in SEEDS] for r in recipes]
    return {"base": base, "loss": found}


def span(runs: list[list[float]]) -> float:
    """How many times the best of the range the worst is, in the mean over the seeds."""
    centre = [mean(seeds) for seeds in runs]
    return max(centre) / min(centre)


def claims(found: Numbers) -> Claims:
    spans = {name: span(found["loss"][name]) for _, name, _, _ in RANGES}
    fine = [spans[name] for priority, name, _, _ in RANGES if priority == 4]
    return [
        (
            "the learning rate spoils most: its worst value loses at least 10 times what its best loses",
            spans["learning rate"] > 10,
        ),
        ("and no other range is wider", spans["learning rate"] == max(spans.values())),
        (
            "epochs follow, wider than anything of priority 3 or 4",
            spans["epochs"] > max(spans[name] for priority, name, _, _ in RANGES if priority > 2),
        ),
        ("no range of priority 4 spoils more than half of what is best", max(fine) < 1.5),
    ]


def said(value: Any) -> str:
    return (
        type(value).__name__
        if isinstance(value, Schedule)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def table(found: Numbers) -> str:
    body = []
    for priority, name, _, values in RANGES:
        runs = found["loss"][name]
        order = sorted(range(len(values)), key=lambda i: mean(runs[i]))
        cells = [f"{said(values[i])}: {mean(runs[i]):.2f}" for i in (order[0], order[-1])]
        body.append([priority, name, ", ".join(said(value) for value in values), *cells, f"{span(runs):.1f}"])
    return rows(["priority", "hyperparameter", "tried", "best: loss", "worst: loss", "worst / best"], body)


def draw(found: Numbers) -> Figure:
    drawn, (panel,) = figure(4.4)
    colors, marks = {1: RED, 2: ORANGE, 3: GREEN, 4: BLUE}, {1: "s", 2: "D", 3: "^", 4: "o"}
    for place, (priority, name, _, _) in enumerate(RANGES):
        centre = [mean(seeds) for seeds in found["loss"][name]]
        panel.plot([min(centre), max(centre)], [place, place], color=colors[priority], lw=3, alpha=0.4)
        label = f"priority {priority}" if place == next(i for i, r in enumerate(RANGES) if r[0] == priority) else None
        panel.plot(
            centre, [place] * len(centre), ls="", marker=marks[priority], ms=5.5, color=colors[priority], label=label
        )
    panel.axvline(mean(found["base"]), color=GREY, ls="--", lw=1)
    panel.set_yticks(range(len(RANGES)), [name for _, name, _, _ in RANGES], fontsize=8.5)
    panel.invert_yaxis()
    panel.set(xscale="log", xlabel="held-out loss, nats; a point a value, mean of three seeds")
    panel.set_xticks([0.15, 0.2, 0.5, 1, 2], ["0.15", "0.2", "0.5", "1", "2"])
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize=8.5, loc="lower right")
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
