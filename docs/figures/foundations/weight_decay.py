"""L2 and decoupled decay under Adam, on digits: what a scale of the loss and a learning rate do to each."""

from __future__ import annotations

from functools import partial

import torch
from _page import LOOKS, Claims, Numbers, digits, evaluate, figure, mean, perceptron, rows, run, spread, train
from matplotlib.figure import Figure
from torch import Tensor

from firstlight.initializers import initialize_
from firstlight.losses import cross_entropy_loss
from firstlight.optimizers import Adam, AdamW, param_groups

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
DECAYS = {"L2 (Adam)": (0.0, 1e-4, 1e-3, 1e-2, 1e-1), "decoupled (AdamW)": (0.0, 1e-2, 1e-1, 1.0, 3.0)}
MAKERS = {"L2 (Adam)": Adam, "decoupled (AdamW)": AdamW}
SCALED_DECAY = {"L2 (Adam)": 1e-3, "decoupled (AdamW)": 1.0}
STEPS, RATE = 300, 3e-3
SEEDS = range(3)


def trained(kind: str, decay: float, scale: float, seed: int) -> dict[str, float]:
    inputs, target, held_out, answers = digits()
    inputs, target = inputs[:300], target[:300]  # few, so that there is something to regularize
    torch.manual_seed(seed)
    model = perceptron(64, 64, 10)
    initialize_(model)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return scale * cross_entropy_loss(logits, labels)

    # eps is part of the scale: with it at 0 the steps of Adam do not change with the loss at all
    make = partial(MAKERS[kind], lr=RATE, eps=1e-12)
    train(
        model,
        inputs,
        target,
        optimizer=make(param_groups(model, weight_decay=decay)),
        steps=STEPS,
        seed=seed,
        loss=loss,
    )
    value, accuracy = evaluate(model, held_out, answers)
    weights = torch.cat([layer.weight.flatten() for layer in (model[0], model[2])])
    return {"length": weights.norm().item(), "loss": value, "accuracy": 100 * accuracy}


def measure() -> Numbers:
    return {
        "scale": {
            kind: {scale: [trained(kind, SCALED_DECAY[kind], scale, seed) for seed in SEEDS] for scale in SCALES}
            for kind in MAKERS
        },
        "decay": {
            kind: {decay: [trained(kind, decay, 1.0, seed) for seed in SEEDS] for decay in DECAYS[kind]}
            for kind in MAKERS
        },
    }


def average(runs: list[dict[str, float]], key: str) -> float:
    return mean([run[key] for run in runs])


def claims(found: Numbers) -> Claims:
    def ratio(kind: str) -> float:
        lengths = [average(runs, "length") for runs in found["scale"][kind].values()]
        return max(lengths) / min(lengths)

    decay = {k: {float(d): average(runs, "loss") for d, runs in v.items()} for k, v in found["decay"].items()}
    both = min(min(line.values()) for line in decay.values())
    return [
        (
            "under AdamW the length of the weights changes by less than 1 % when the loss is scaled from 0.01 to 100",
            ratio("decoupled (AdamW)") < 1.01,
        ),
        ("under Adam with L2 it changes by more than a half", ratio("L2 (Adam)") > 1.5),
        (
            "a decay of 0.1 more than doubles the held-out loss as L2, and changes it by less than 10 % when decoupled",
            decay["L2 (Adam)"][0.1] > 2 * decay["L2 (Adam)"][0.0]
            and abs(decay["decoupled (AdamW)"][0.1] / decay["decoupled (AdamW)"][0.0] - 1) < 0.1,
        ),
        (
            "the best of either are within 10 % of each other",
            max(min(line.values()) for line in decay.values()) < 1.1 * both,
        ),
    ]


def table(found: Numbers) -> str:
    scale = [
        [f"{kind}, {SCALED_DECAY[kind]:g}", *(spread([run["length"] for run in runs], 2) for runs in line.values())]
        for kind, line in found["scale"].items()
    ]
    decay = [
        [
            kind,
            decay,
            *(spread([run[key] for run in runs], n) for key, n in (("length", 1), ("loss", 3), ("accuracy", 1))),
        ]
        for kind, line in found["decay"].items()
        for decay, runs in line.items()
    ]
    return (
        "Length of the weights after training, by the factor that the loss is multiplied with:\n\n"
        + rows(["decay", *(f"loss × {scale:g}" for scale in SCALES)], scale)
        + "\n\nThe loss as it is, by decay:\n\n"
        + rows(["kind", "weight_decay", "length of the weights", "held-out loss", "accuracy, %"], decay)
    )


def draw(found: Numbers) -> Figure:
    drawn, (left, right) = figure(2.9, 2)
    for look, (kind, line) in zip(LOOKS, found["scale"].items(), strict=False):
        left.plot(SCALES, [average(runs, "length") for runs in line.values()], **look, label=kind)
    left.set(xscale="log", ylim=(0, None), xlabel="factor of the loss", ylabel="length of the weights")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    for look, line in zip(LOOKS, found["decay"].values(), strict=False):
        places = [float(decay) or 1e-5 for decay in line]
        right.plot(places, [average(runs, "loss") for runs in line.values()], **look)
    right.set(xscale="log", xlabel="weight_decay (left end: none)", ylabel="held-out loss, nats")
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
