"""Depth, scheme and activation: what is left of a signal after 50 layers, and whether the network learns."""

from __future__ import annotations

import math

import torch
from _page import LOOKS, Claims, Numbers, digits, evaluate, figure, mean, median, perceptron, rows, run, spread, train
from matplotlib.figure import Figure
from torch import nn

from firstlight.initializers import InitPlan, InitRule, initialize_, lsuv_
from firstlight.measures import dead_units
from firstlight.optimizers import Adam

PLANS = {
    "N(0, 1)": InitPlan([InitRule("normal", std=1.0)]),
    "N(0, 0.01²)": InitPlan([InitRule("normal", std=0.01)]),
    "Xavier": InitPlan([InitRule("xavier", gain=1.0, distribution="uniform")]),
    "He": InitPlan([InitRule("he", gain=math.sqrt(2))]),
    "orthogonal": InitPlan([InitRule("orthogonal", gain=math.sqrt(2))]),
    "LSUV": None,
}
ACTIVATIONS = {"ReLU": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "GELU": nn.GELU}
LAYERS, WIDTH, QR_WIDTH = 50, 1024, 512  # the latter where every layer needs a QR decomposition
DEPTHS = (2, 10, 30)
SEEDS = range(5)
FEW = range(2)


def initialized(model: nn.Module, scheme: str, activation: str) -> nn.Module:
    plan = PLANS[scheme]
    if plan is None:
        lsuv_(model, digits()[0][:256])
    else:
        if scheme == "orthogonal" and activation != "ReLU":
            plan = InitPlan([InitRule("orthogonal", gain=1.0)])
        initialize_(model, plan)
    return model


@torch.no_grad()
def squares(scheme: str, activation: str, width: int, seed: int) -> list[float]:
    """Mean square before each activation, of 64 digits."""
    torch.manual_seed(seed)
    model = perceptron(64, *[width] * LAYERS, 10, activation=ACTIVATIONS[activation])
    hidden, found = digits()[0][:64], []
    for layer in initialized(model, scheme, activation)[:-1]:
        hidden = layer(hidden)
        if isinstance(layer, nn.Linear):
            value = hidden.double().square().mean().item()
            found.append(value if math.isfinite(value) else math.inf)
    return found


def accuracy(scheme: str, activation: str, depth: int, seed: int) -> float:
    inputs, target, held_out, answers = digits()
    torch.manual_seed(seed)
    model = initialized(perceptron(64, *[64] * depth, 10, activation=ACTIVATIONS[activation]), scheme, activation)
    train(model, inputs, target, optimizer=Adam(model.parameters(), lr=1e-3), steps=100, seed=seed)
    return 100 * evaluate(model, held_out, answers)[1]


def with_bias(bias: float, seed: int) -> tuple[float, float]:
    """Dead units of a ReLU network whose biases start at ``bias``, and the accuracy that it reaches."""
    inputs, target, held_out, answers = digits()
    torch.manual_seed(seed)
    model = perceptron(64, 64, 64, 10)
    initialize_(model)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)][:-1]
    hidden, dead = inputs, []
    with torch.no_grad():
        for layer in layers:
            layer.bias.fill_(bias)
            before = layer(hidden)
            dead.append(dead_units((before > 0).float()).float().mean().item())
            hidden = before.relu()
    train(model, inputs, target, optimizer=Adam(model.parameters(), lr=1e-3), steps=100, seed=seed)
    return 100 * mean(dead), 100 * evaluate(model, held_out, answers)[1]


def measure() -> Numbers:
    return {
        "relu": {
            scheme: [squares(scheme, "ReLU", QR_WIDTH if place > 3 else WIDTH, seed) for seed in range(3)]
            for place, scheme in enumerate(PLANS)
        },
        "last": {
            name: {scheme: [squares(scheme, name, 128, seed)[-1] for seed in FEW] for scheme in PLANS}
            for name in ACTIVATIONS
        },
        "accuracy": {
            name: {
                scheme: {depth: [accuracy(scheme, name, depth, seed) for seed in FEW] for depth in DEPTHS}
                for scheme in PLANS
            }
            for name in ACTIVATIONS
        },
        "bias": {bias: [with_bias(bias, seed) for seed in SEEDS] for bias in (0.0, -2.0, -5.0)},
    }


def curve(runs: list[list[float]]) -> list[float]:
    return [median(values) for values in zip(*runs, strict=True)]


def claims(found: Numbers) -> Claims:
    he = curve(found["relu"]["He"])
    wild = curve(found["relu"]["N(0, 1)"])
    lsuv = curve(found["relu"]["LSUV"])
    xavier = curve(found["relu"]["Xavier"])
    score = {
        name: {scheme: {int(d): mean(runs) for d, runs in depths.items()} for scheme, depths in schemes.items()}
        for name, schemes in found["accuracy"].items()
    }
    bias = {float(b): [mean([run[k] for run in runs]) for k in (0, 1)] for b, runs in found["bias"].items()}
    return [
        ("under ReLU, He keeps the mean square within a factor of 2 over 50 layers", max(he) < 2 * min(he)),
        ("LSUV keeps it within 25 % of 1", all(0.75 < value < 1.25 for value in lsuv)),
        ("N(0, 1) multiplies it by more than 10¹⁰ in five layers", wild[5] > 1e10 * wild[0]),
        ("Xavier halves it at every layer, to 20 %", abs((xavier[40] / xavier[0]) ** (1 / 40) / 0.5 - 1) < 0.2),
        (
            "at depth 2 every scheme but the N's is above 90 % with ReLU",
            min(score["ReLU"][s][2] for s in list(PLANS)[2:]) > 90,
        ),
        (
            "at depth 30 He, orthogonal and LSUV are each at least 10 points above Xavier with ReLU",
            min(score["ReLU"][scheme][30] for scheme in list(PLANS)[3:]) > score["ReLU"]["Xavier"][30] + 10,
        ),
        ("at depth 30 no scheme brings sigmoid above 30 %", max(score["sigmoid"][s][30] for s in PLANS) < 30),
        (
            "biases of −5 kill more than nine units in ten, and the accuracy with them",
            bias[-5.0][0] > 90 and bias[-5.0][1] < 30,
        ),
    ]


def short(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.1f}" if 0.1 <= value < 1000 else f"{value:.0e}"


def table(found: Numbers) -> str:
    head = ["activation", *PLANS]
    last = [[name, *(short(median(schemes[s])) for s in PLANS)] for name, schemes in found["last"].items()]
    body = []
    for name, schemes in found["accuracy"].items():
        for depth in DEPTHS:
            body.append([f"{name}, {depth} layers", *(spread(schemes[s][str(depth)], 0) for s in PLANS)])
    dead = [
        [bias, spread([run[0] for run in runs], 0), spread([run[1] for run in runs], 0)]
        for bias, runs in found["bias"].items()
    ]
    return (
        "Mean square before the 50th activation (width 128, median of two seeds; 1 at the input):\n\n"
        + rows(head, last)
        + "\n\nHeld-out accuracy in % after 100 steps of Adam at 0.001 (width 64, two seeds; a guess is 10):\n\n"
        + rows(head, body)
        + "\n\nTwo hidden layers of ReLU, He, with biases that do not start at zero (five seeds):\n\n"
        + rows(["bias at the start", "units that no sample wakes, %", "accuracy, %"], dead)
    )


def draw(found: Numbers) -> Figure:
    drawn, (left, right) = figure(4.2, 2, width_ratios=[1, 1.25])
    for look, scheme in zip(LOOKS, PLANS, strict=False):
        values = curve(found["relu"][scheme])
        left.plot(range(1, LAYERS + 1), values, **look | {"markevery": 7}, label=scheme)
    left.set(yscale="log", ylim=(1e-12, 1e12), xlabel="layer", ylabel="mean square before ReLU")
    left.legend(frameon=False, fontsize=7.5, loc="upper right")
    cells = [
        [mean(schemes[s][str(depth)]) for s in PLANS] for schemes in found["accuracy"].values() for depth in DEPTHS
    ]
    right.grid(visible=False)
    right.imshow(cells, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            right.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color="w" if value < 60 else "k")
    right.set_xticks(range(len(PLANS)), list(PLANS), rotation=40, ha="right", fontsize=7.5)
    names = [f"{name}, {depth}" for name in ACTIVATIONS for depth in DEPTHS]
    right.set_yticks(range(len(names)), names, fontsize=7.5)
    for edge in (2.5, 5.5, 8.5):
        right.axhline(edge, color="w", lw=2)
    right.set_title("accuracy, %, by activation and layers", fontsize=9)
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
