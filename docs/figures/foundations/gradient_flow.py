"""Gradients that vanish and gradients that explode: each provoked, and each cured in several ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _page import LOOKS, Claims, Numbers, digits, evaluate, figure, mean, median, rows, run, spread, train
from matplotlib.figure import Figure
from torch import Tensor, nn

from firstlight.initializers import InitPlan, InitRule, initialize_, lsuv_
from firstlight.losses import cross_entropy_loss
from firstlight.measures import relative_norms
from firstlight.optimizers import SGD, Adam

DEPTH, WIDTH, STEPS = 15, 64, 150
SEEDS = range(3)


class Skip(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@dataclass(frozen=True)
class Net:
    """A net of 15 layers, how it starts, and how it is trained."""

    activation: type[nn.Module] = nn.ReLU
    norm: bool = False
    skip: bool = False
    factor: float = 1.0  # on He's standard deviation
    lsuv: bool = False
    rate: float = 0.05
    clip: float | None = None
    adam: bool = False


VANISHING = {
    "sigmoid, 15 layers": Net(nn.Sigmoid),
    "the same with LSUV": Net(nn.Sigmoid, lsuv=True),
    "the same with Adam": Net(nn.Sigmoid, adam=True, rate=3e-3),
    "ReLU and He": Net(),
    "skip connections": Net(nn.Sigmoid, skip=True),
    "batch norm": Net(nn.Sigmoid, norm=True),
}
EXPLODING = {
    "ReLU, 2 × He, 15 layers": Net(factor=2.0),
    "the same at a rate of 1e-6": Net(factor=2.0, rate=1e-6),
    "the same, clipped to norm 1": Net(factor=2.0, clip=1.0),
    "He": Net(),
    "batch norm ": Net(factor=2.0, norm=True),
}


def network(net: Net, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    blocks: list[nn.Module] = [nn.Linear(64, WIDTH)]
    for _ in range(DEPTH - 1):
        norm = [nn.BatchNorm1d(WIDTH)] if net.norm else []
        block = nn.Sequential(nn.Linear(WIDTH, WIDTH), *norm, net.activation())
        blocks.append(Skip(block) if net.skip else block)
    model = nn.Sequential(*blocks, nn.Linear(WIDTH, 10))
    scheme = InitRule("he", kinds=["linear"], gain=math.sqrt(2) * net.factor)
    if net.activation is nn.Sigmoid:
        scheme = InitRule("xavier", kinds=["linear"], gain=1.0, distribution="uniform")
    initialize_(model, InitPlan([scheme]))
    if net.lsuv:
        lsuv_(model, digits()[0][:256])
    return model


def hidden(model: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if p.ndim == 2}


def one(net: Net, seed: int) -> dict[str, object]:
    inputs, target, held_out, answers = digits()
    model = network(net, seed)
    model.train()
    cross_entropy_loss(model(inputs[:256]), target[:256]).backward()
    weights = hidden(model)
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    flow = list(relative_norms({n: w.detach() for n, w in weights.items()}, gradients).values())
    model.zero_grad()
    model = network(net, seed)
    optimizer = (Adam if net.adam else SGD)(model.parameters(), lr=net.rate)
    clip: Callable[[], object] | None = None
    if net.clip is not None:
        limit = net.clip

        def clip() -> object:
            return nn.utils.clip_grad_norm_(model.parameters(), limit)

    losses = train(model, inputs, target, optimizer=optimizer, steps=STEPS, seed=seed, before_step=clip)
    broke = not math.isfinite(losses[-1])
    loss, accuracy = evaluate(model, held_out, answers)
    broke = broke or not math.isfinite(loss)
    return {"flow": flow, "accuracy": 100 * accuracy if not broke else math.nan, "first": losses[0]}


def measure() -> Numbers:
    return {
        kind: {name: [one(net, seed) for seed in SEEDS] for name, net in nets.items()}
        for kind, nets in (("vanishing", VANISHING), ("exploding", EXPLODING))
    }


def flow(runs: list[dict[str, list[float]]]) -> list[float]:
    return [median(values) for values in zip(*(run["flow"] for run in runs), strict=True)]


def score(runs: list[dict[str, float]]) -> float:
    return mean([run["accuracy"] if math.isfinite(run["accuracy"]) else 10.0 for run in runs])


def claims(found: Numbers) -> Claims:
    sick, mad = found["vanishing"]["sigmoid, 15 layers"], found["exploding"]["ReLU, 2 × He, 15 layers"]
    slow = flow(sick)
    cured = [score(found["vanishing"][name]) for name in ("ReLU and He", "skip connections", "batch norm")]
    calm = flow(found["exploding"]["He"])
    held = [score(found["exploding"][name]) for name in list(EXPLODING)[1:3]]
    return [
        ("through 15 layers of sigmoid less than a millionth of the gradient arrives", slow[0] < 1e-6 * slow[-1]),
        ("and the network does not learn", score(sick) < 20),
        ("ReLU with He, skip connections and batch norm each bring it above 80 %", min(cured) > 80),
        ("twice He's weights make the first gradient more than a thousand times larger", flow(mad)[0] > 1e3 * calm[0]),
        ("and training breaks", all(not math.isfinite(run["accuracy"]) or run["accuracy"] < 20 for run in mad)),
        ("a rate of 1e-6 and clipping each let it learn something, more than 25 %", min(held) > 25),
        (
            "batch norm brings it above 70 %, He above 80 %, both at least 20 points above those two",
            score(found["exploding"]["batch norm "]) > max(70, max(held) + 20)
            and score(found["exploding"]["He"]) > max(80, max(held) + 20),
        ),
    ]


def table(found: Numbers) -> str:
    body = []
    for runs_by_name in found.values():
        for name, runs in runs_by_name.items():
            values = flow(runs)
            accuracy = spread([run["accuracy"] for run in runs], 0)
            body.append([name.strip(), f"{values[0]:.0e}", f"{values[-1]:.0e}", f"{runs[0]['first']:.2g}", accuracy])
    head = [
        "network",
        "gradient / weight, first layer",
        "last layer",
        "first loss, nats",
        f"accuracy after {STEPS} steps, %",
    ]
    return rows(head, body)


def draw(found: Numbers) -> Figure:
    drawn, panels = figure(3.9, 2)
    for panel, (kind, by_name) in zip(panels, found.items(), strict=True):
        for look, (name, runs) in zip(LOOKS, by_name.items(), strict=False):
            if "rate of" in name or "Adam" in name or "clipped" in name:
                continue  # the same gradients at the start
            values = flow(runs)
            panel.plot(range(1, len(values) + 1), values, **look | {"markevery": 3}, label=name.strip())
        panel.set(yscale="log", xlabel="layer, from the inputs", xticks=(1, 4, 8, 12, 16))
        panel.set_title(kind, fontsize=9)
        panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    panels[0].set_ylabel("|gradient| / |weight|, at the start")
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
