"""Schedules on digits with a rate that is high for the batch; and what warm-up does for a transformer."""

from __future__ import annotations

import torch
from _page import (
    BLUE,
    LOOKS,
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
    spread,
    train,
)
from _page import text as help_texts
from matplotlib.figure import Figure
from torch import Tensor, nn

from firstlight.initializers import initialize_
from firstlight.losses import sequence_cross_entropy_loss
from firstlight.optimizers import SGD, AdamW
from firstlight.schedules import (
    Constant,
    CosineAnnealing,
    OneCycle,
    Schedule,
    StepDecay,
    WarmupCosine,
    WarmupInverseSqrt,
    WarmupLinear,
    WarmupStableDecay,
)

STEPS, RATE, BATCH = 400, 0.1, 16
SCHEDULES: dict[str, Schedule] = {
    "Constant": Constant(),
    "StepDecay(0.5)": StepDecay(every=0.5),
    "CosineAnnealing": CosineAnnealing(),
    "WarmupCosine(0.1)": WarmupCosine(0.1),
    "WarmupLinear(0.1)": WarmupLinear(0.1),
    "WarmupStableDecay(0.1, 0.3)": WarmupStableDecay(0.1, 0.3),
    "OneCycle": OneCycle(),
    "WarmupInverseSqrt(40)": WarmupInverseSqrt(40),
}
SHOWN = ("Constant", "StepDecay(0.5)", "WarmupCosine(0.1)", "WarmupStableDecay(0.1, 0.3)")
SEEDS = range(5)
LENGTH, TEXT_STEPS, WARMUP = 32, 120, 40
TEXT_RATES = (0.003, 0.01)
TEXT_SEEDS = range(3)


def on_digits(schedule: Schedule, seed: int) -> dict[str, float | list[float]]:
    inputs, target, held_out, answers = digits()
    torch.manual_seed(seed)
    model = perceptron(64, 64, 10)
    initialize_(model)
    curve = []

    def look(step: int) -> None:
        if step % 10 == 9:
            curve.append(evaluate(model, inputs, target)[0])
            model.train()

    train(
        model,
        inputs,
        target,
        optimizer=SGD(model.parameters(), lr=RATE, momentum=0.9),
        steps=STEPS,
        batch_size=BATCH,
        factor=lambda step: schedule.factor(step, STEPS),
        seed=seed,
        after_step=look,
    )
    loss, accuracy = evaluate(model, held_out, answers)
    return {"curve": curve, "train": curve[-1], "loss": loss, "accuracy": 100 * accuracy}


class Transformer(nn.Module):
    """Four layers that normalize after each sum, as the first transformers did."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        for parameter in self.layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.head = nn.Linear(32, 128)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens) + self.position, mask=self.mask, is_causal=True))


def on_text(rate: float, warmup: int, seed: int) -> list[float]:
    data = help_texts()
    starts = torch.randint(len(data) - LENGTH - 1, (4000,), generator=torch.Generator().manual_seed(seed))
    windows = data[starts[:, None] + torch.arange(LENGTH + 1)].long().clamp(max=127)
    torch.manual_seed(seed)
    model = Transformer()
    return train(
        model,
        windows[:, :-1],
        windows[:, 1:],
        optimizer=AdamW(model.parameters(), lr=rate, weight_decay=0.0),
        steps=TEXT_STEPS,
        batch_size=16,
        loss=sequence_cross_entropy_loss,
        factor=Constant(warmup=warmup).factor,
        seed=seed,
    )


def measure() -> Numbers:
    digits_runs = {name: [on_digits(schedule, seed) for seed in SEEDS] for name, schedule in SCHEDULES.items()}
    text_runs = {
        f"{rate:g} {warmup}": [on_text(rate, warmup, seed) for seed in TEXT_SEEDS]
        for rate in TEXT_RATES
        for warmup in (0, WARMUP)
    }
    return {"digits": digits_runs, "text": text_runs}


def finals(found: Numbers, key: str) -> list[float]:
    return [mean(losses[-20:]) for losses in found["text"][key]]


def claims(found: Numbers) -> Claims:
    last = {name: mean([run["train"] for run in runs]) for name, runs in found["digits"].items()}
    ends = [value for name, value in last.items() if name != "Constant"]
    runs = found["digits"]["StepDecay(0.5)"]
    drop = mean([run["curve"][19] for run in runs]) / mean([run["curve"][22] for run in runs])
    text = {key: mean(finals(found, key)) for key in found["text"]}
    return [
        (
            "the training loss of every other schedule ends below half that of the constant rate",
            max(ends) < last["Constant"] / 2,
        ),
        ("within 30 steps of the drop in StepDecay the training loss halves", drop > 2),
        ("at a rate of 0.01 the transformer learns 0.3 nats more with warm-up", text["0.01 0"] > text["0.01 40"] + 0.3),
        ("at a rate of 0.003 it does not need one", text["0.003 0"] < text["0.003 40"] + 0.1),
    ]


def table(found: Numbers) -> str:
    body = [
        [f"`{name}`"]
        + [spread([run[key] for run in runs], n) for key, n in (("train", 3), ("loss", 3), ("accuracy", 1))]
        for name, runs in found["digits"].items()
    ]
    first = rows(["schedule", "training loss", "held-out loss", "accuracy, %"], body)
    body = []
    for rate in TEXT_RATES:
        body.append([f"{rate:g}", *(spread(finals(found, f"{rate:g} {warmup}"), 2) for warmup in (0, WARMUP))])
    second = rows(["transformer, rate", "no warm-up", f"warm-up over {WARMUP} steps"], body)
    return f"{first}\n\n{second}"


def draw(found: Numbers) -> Figure:
    drawn, (shape, loss, dots, text) = figure(5.0, 2, 2)
    for look, name in zip(LOOKS, SHOWN, strict=False):
        line = look | {"markevery": 50}
        shape.plot([SCHEDULES[name].factor(step, STEPS) for step in range(STEPS)], **line, label=name.split("(")[0])
        curves = torch.tensor([run["curve"] for run in found["digits"][name]])
        loss.plot(range(10, STEPS + 1, 10), curves.mean(0).tolist(), **look | {"markevery": 5})
    shape.set(xlabel="optimizer step", ylabel="factor of the base rate", ylim=(0, 1.75), yticks=(0, 0.5, 1))
    shape.legend(frameon=False, fontsize=7.5, loc="upper right", ncols=1)
    loss.set(xlabel="optimizer step", ylabel="training loss, nats", yscale="log")
    names = list(SCHEDULES)
    for place, name in enumerate(names):
        values = [run["loss"] for run in found["digits"][name]]
        dots.plot(values, [place] * len(values), ls="", marker="o", ms=4, mfc="none", color=BLUE)
        dots.plot(mean(values), place, marker="|", ms=14, mew=2.5, color=RED)
    dots.set(yticks=range(len(names)), xlabel="held-out loss, nats; | the mean")
    dots.set_yticklabels([name.split("(")[0] for name in names], fontsize=7.5)
    dots.invert_yaxis()
    for key, look, label in (("0.01 0", LOOKS[1], "no warm-up"), ("0.01 40", LOOKS[0], "warm-up, 40 steps")):
        curves = torch.tensor(found["text"][key]).unfold(1, 10, 5).mean(-1)
        steps = range(10, TEXT_STEPS + 1, 5)
        text.plot(steps, curves.mean(0).tolist(), **look | {"markevery": 3}, label=label)
        text.fill_between(steps, curves.amin(0), curves.amax(0), color=look["color"], alpha=0.2)
    text.set(xlabel="optimizer step", ylabel="nats per byte, mean of 10 steps", ylim=(2.3, 5))
    text.set_title("transformer, rate 0.01", fontsize=9)
    text.legend(frameon=False, fontsize=8, loc="upper right")
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
