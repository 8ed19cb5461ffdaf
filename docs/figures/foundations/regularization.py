"""Twenty ways to regularize, one at a time, on 200 digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from _page import BLUE, GREY, RED, Claims, Numbers, batches, digits, evaluate, figure, mean, rows, run, spread
from matplotlib.figure import Figure
from torch import Tensor, nn

from firstlight.initializers import initialize_
from firstlight.layers import DropBlock2d, DropConnectLinear, Dropout, DropPath, GaussianNoise, SpatialDropout
from firstlight.losses import cross_entropy_loss
from firstlight.mixing import CutMix, MixUp
from firstlight.optimizers import AdamW, param_groups
from firstlight.regularizers import L1Penalty, L2Penalty, max_norm_
from firstlight.sampling import Competence, CurriculumSampler

COUNT, BATCH, STEPS, RATE = 200, 50, 160, 3e-3
SEEDS = range(4)


@dataclass(frozen=True)
class Way:
    """What differs from the plain run."""

    kind: str
    net: dict[str, Any] = field(default_factory=dict)
    decay: float = 0.0
    penalty: Callable[[nn.Module], Tensor] | None = None
    mix: MixUp | CutMix | None = None
    smoothing: float = 0.0
    limit: float | None = None
    noise: float = 0.0
    clip: float | None = None
    shift: bool = False
    stop: bool = False
    curriculum: bool = False


WAYS = {
    "none": Way(""),
    "L1 penalty, 1e-4": Way("explicit", penalty=L1Penalty(1e-4)),
    "L2 penalty, 1e-3": Way("explicit", penalty=L2Penalty(1e-3)),
    "weight decay, 0.3": Way("explicit", decay=0.3),
    "max-norm, 1.5": Way("explicit", limit=1.5),
    "dropout, 0.5": Way("dropout", {"flat": Dropout(0.5)}),
    "spatial dropout, 0.2": Way("dropout", {"maps": SpatialDropout(0.2)}),
    "DropBlock, 0.2, 3 × 3": Way("dropout", {"maps": DropBlock2d(0.2, 3)}),
    "DropConnect, 0.5": Way("dropout", {"connect": True}),
    "DropPath, 0.3": Way("dropout", {"path": DropPath(0.3)}),
    "batch norm": Way("implicit", {"norm": True}),
    "noise on inputs, 0.3": Way("implicit", {"inputs": GaussianNoise(0.3)}),
    "gradient noise, 0.01": Way("implicit", noise=0.01),
    "gradient clipping, 0.5": Way("implicit", clip=0.5),
    "early stopping": Way("implicit", stop=True),
    "label smoothing, 0.1": Way("data", smoothing=0.1),
    "MixUp, 0.4": Way("data", mix=MixUp(0.4)),
    "CutMix, 1.0": Way("data", mix=CutMix(1.0)),
    "shifts by a pixel": Way("data", shift=True),
    "curriculum": Way("data", curriculum=True),
}


class Net(nn.Module):
    """Two convolutions, the second with a skip connection, and a hidden layer."""

    def __init__(
        self,
        inputs: nn.Module | None = None,
        maps: nn.Module | None = None,
        path: nn.Module | None = None,
        flat: nn.Module | None = None,
        *,
        norm: bool = False,
        connect: bool = False,
    ) -> None:
        super().__init__()
        self.inputs, self.maps, self.path, self.flat = (part or nn.Identity() for part in (inputs, maps, path, flat))
        self.first = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity())
        self.hidden: nn.Module = nn.Sequential(nn.Linear(256, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)
        initialize_(self)
        if connect:
            layer = DropConnectLinear(256, 64, 0.5, activation=nn.ReLU(), mask_per="batch")
            layer.load_state_dict(self.hidden[0].state_dict())  # type: ignore[index]
            self.hidden = layer

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(self.first(self.inputs(x)))
        x = nn.functional.max_pool2d((x + self.path(self.second(x))).relu(), 2)
        return self.head(self.flat(self.hidden(x.flatten(1))))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image by up to one pixel, in either direction."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=float(images.min()))
    to = torch.randint(3, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, to, strict=True)])


def easy_first(inputs: Tensor, target: Tensor, seed: int) -> Iterator[Tensor]:
    """Samples nearest to the mean of their class first; all of them from the twentieth epoch on."""
    centers = torch.stack([inputs[target == label].mean(0) for label in range(10)])
    difficulty = (inputs - centers[target]).flatten(1).norm(dim=1)
    sampler = CurriculumSampler(difficulty, Competence(epochs=20, initial=0.3), seed=seed)
    for epoch in range(STEPS * BATCH // COUNT):
        yield from sampler.order(epoch).split(BATCH)


def one(way: Way, seed: int) -> dict[str, float]:
    inputs, target, held_out, answers = digits(images=True)
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    inputs, target, check = inputs[chosen[:COUNT]], target[chosen[:COUNT]], chosen[COUNT : COUNT + 100]
    judges = (digits(images=True)[0][check], digits(images=True)[1][check])
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Net(**way.net)
    optimizer = AdamW(param_groups(model, weight_decay=way.decay), lr=RATE)
    order = easy_first(inputs, target, seed) if way.curriculum else batches(COUNT, BATCH, STEPS, generator)
    best, kept = float("inf"), None
    for step, taken in enumerate(order):
        model.train()
        x, y = inputs[taken], target[taken]
        if way.shift:
            x = shifted(x, generator)
        if way.mix is not None:
            x, y = way.mix(x, y, 10, generator)
        loss = cross_entropy_loss(model(x), y, label_smoothing=way.smoothing)
        if way.penalty is not None:
            loss = loss + way.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        if way.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), way.clip)
        if way.noise:
            for parameter in model.parameters():  # what GradientNoise adds
                parameter.grad += (way.noise / (1 + step) ** 0.55) ** 0.5 * torch.randn(parameter.shape)
        optimizer.step()
        if way.limit is not None:
            max_norm_(model, way.limit)
        if way.stop and step % 4 == 3 and (value := evaluate(model, *judges)[0]) < best:
            best, kept = value, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if kept is not None:
        model.load_state_dict(kept)
    train_loss, _ = evaluate(model, inputs, target)
    loss, accuracy = evaluate(model, held_out, answers)
    return {"train": train_loss, "loss": loss, "accuracy": 100 * accuracy}


def measure() -> Numbers:
    return {name: [one(way, seed) for seed in SEEDS] for name, way in WAYS.items()}


def average(found: Numbers, name: str, key: str) -> float:
    return mean([run[key] for run in found[name]])


def claims(found: Numbers) -> Claims:
    plain = average(found, "none", "accuracy")
    losses = {name: average(found, name, "loss") for name in found}
    better = [name for name in found if losses[name] < losses["none"]]
    gap = {name: losses[name] - average(found, name, "train") for name in found}
    return [
        (
            "shifted images, dropout and batch norm each lower the held-out loss by more than a tenth",
            max(losses[name] for name in ("shifts by a pixel", "dropout, 0.5", "batch norm")) < 0.9 * losses["none"],
        ),
        (
            "label smoothing raises the accuracy by more than a point, and the held-out loss with it",
            average(found, "label smoothing, 0.1", "accuracy") > plain + 1
            and losses["label smoothing, 0.1"] > losses["none"],
        ),
        ("at least half of the ways lower the held-out loss", len(better) >= 10),
        (
            "and with them the gap between held-out and training loss is smaller in the mean",
            mean([gap[name] for name in better]) < gap["none"],
        ),
        (
            "clipping the gradient changes the accuracy by less than a point",
            abs(average(found, "gradient clipping, 0.5", "accuracy") - plain) < 1,
        ),
    ]


def table(found: Numbers) -> str:
    body = [
        [
            WAYS[name].kind,
            name,
            *(spread([run[key] for run in runs], n) for key, n in (("train", 3), ("loss", 3), ("accuracy", 1))),
        ]
        for name, runs in found.items()
    ]
    return rows(["kind", "way", "training loss", "held-out loss", "accuracy, %"], body)


def draw(found: Numbers) -> Figure:
    drawn, (left, right) = figure(4.6, 2, sharey=True)
    for panel, key, label in ((left, "accuracy", "held-out accuracy, %"), (right, "loss", "held-out loss, nats")):
        for place, runs in enumerate(found.values()):
            values = [run[key] for run in runs]
            panel.plot(values, [place] * len(values), ls="", marker="o", ms=3.5, mfc="none", color=BLUE)
            panel.plot(mean(values), place, marker="|", ms=11, mew=2.5, color=RED)
        panel.axvline(average(found, "none", key), color=GREY, ls="--", lw=1)
        panel.set_xlabel(label)
    left.set_yticks(range(len(found)), list(found), fontsize=8)
    left.invert_yaxis()
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
