"""Nine set-ups, one sound and eight with a fault: what one batch shows, and what a preflight says."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import torch
from _page import LOOKS, Claims, Numbers, digits, evaluate, figure, mean, perceptron, rows, run, spread, train
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.initializers import initialize_
from firstlight.losses import CrossEntropyLoss
from firstlight.modules import SupervisedModule
from firstlight.optimizers import SGD
from firstlight.preflight import run_preflight

RATE = 0.1
ONE_BATCH = 300
SEEDS = range(2)
# By fault: the names of checks that say it.
FAULTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "inputs from 0 to 16 000": ("input_scale",),
    "labels in another order": ("no_label_signal",),
    "softmax before the loss": ("softmax_twice",),
    "rate × 1000": ("lr_too_high", "optimizer_fails"),
    "rate × 1e-6": ("lr_too_low",),
    "all weights 0.1": ("symmetric_init",),
    "biases of −20": ("dead_units",),
    "output of 9 classes": ("label_range",),
}


def set_up(fault: str, seed: int) -> tuple[nn.Module, Tensor, Tensor, float]:
    """A network, its data, and a learning rate."""
    inputs, target, _, _ = digits()
    torch.manual_seed(seed)
    model = perceptron(64, 64, 64, 9 if fault == "output of 9 classes" else 10)
    initialize_(model)
    rate = RATE
    with torch.no_grad():
        if fault == "inputs from 0 to 16 000":
            inputs = (inputs - inputs.min()) * 6000
        elif fault == "labels in another order":
            target = target[torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))]
        elif fault == "softmax before the loss":
            model.append(nn.Softmax(1))
        elif fault.startswith("rate"):
            rate *= float(fault.split("× ")[1])
        elif fault == "all weights 0.1":
            for parameter in model.parameters():
                parameter.fill_(0.1)
        elif fault == "biases of −20":
            for layer in (model[0], model[2]):
                layer.bias.fill_(-20)
    return model, inputs, target, rate


def one_batch(fault: str, seed: int) -> list[float]:
    """The loss of a batch of 64 that is trained on over and over; empty where the step does not run."""
    model, inputs, target, rate = set_up(fault, seed)
    optimizer = SGD(model.parameters(), lr=rate, momentum=0.9)
    try:
        losses = train(
            model,
            inputs[:64],
            target[:64],
            optimizer=optimizer,
            steps=ONE_BATCH,
            batch_size=64,
            loss=CrossEntropyLoss(),
        )
    except (IndexError, ValueError):
        return []
    return [value if math.isfinite(value) else math.inf for value in losses]


def trained(fault: str, seed: int) -> float:
    """Held-out accuracy after six epochs, as a run without a checklist would find it."""
    model, inputs, target, rate = set_up(fault, seed)
    held_out, answers = digits()[2:]
    if fault == "inputs from 0 to 16 000":
        held_out = (held_out - digits()[0].min()) * 6000
    optimizer = SGD(model.parameters(), lr=rate, momentum=0.9)
    try:
        train(model, inputs, target, optimizer=optimizer, steps=120, loss=CrossEntropyLoss(), seed=seed)
        return 100 * evaluate(model, held_out, answers)[1]
    except (IndexError, ValueError):
        return 0.0


def preflight(fault: str) -> dict[str, Any]:
    model, inputs, target, rate = set_up(fault, 0)
    optimizer = functools.partial(SGD, lr=rate, momentum=0.9)
    module = SupervisedModule(model, CrossEntropyLoss(), optimizer=optimizer)
    loader = DataLoader(TensorDataset(inputs, target), batch_size=64, shuffle=True)
    trainer = Trainer(max_epochs=6, logger=False, enable_checkpointing=False, accelerator="cpu")
    report = run_preflight(module, loader, trainer=trainer, budget_seconds=600)
    root = report.root
    return {
        "code": root.code if root else "",
        "name": root.name if root else "",
        "message": root.message if root else "",
        "findings": [finding.name for finding in report.findings],
        "seconds": report.seconds,
    }


def baselines() -> dict[str, float]:
    """Accuracy in % of the most frequent class, of logistic regression, and of the nearest neighbour."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    inputs, target, held_out, answers = (tensor.numpy() for tensor in digits())
    found = {"most frequent class": float((answers == torch.from_numpy(target).mode().values.item()).mean())}
    found["logistic regression"] = LogisticRegression(max_iter=500).fit(inputs, target).score(held_out, answers)
    found["nearest neighbour"] = KNeighborsClassifier(1).fit(inputs, target).score(held_out, answers)
    return {name: 100 * value for name, value in found.items()}


def measure() -> Numbers:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return {
        "faults": {
            fault: {
                "one_batch": [one_batch(fault, seed) for seed in SEEDS],
                "accuracy": [trained(fault, seed) for seed in SEEDS],
                "preflight": preflight(fault),
            }
            for fault in FAULTS
        },
        "baselines": baselines(),
    }


def last(losses: list[float]) -> float:
    return mean(losses[-10:]) if losses else math.nan


def claims(found: Numbers) -> Claims:
    faults, base = found["faults"], found["baselines"]
    sound = faults["none"]
    named = [set(names) & set(faults[fault]["preflight"]["findings"]) for fault, names in FAULTS.items() if names]
    roots = [faults[fault]["preflight"]["name"] in names for fault, names in FAULTS.items() if names]
    sick = [fault for fault in FAULTS if fault not in ("none", "labels in another order")]
    return [
        ("the sound set-up learns one batch to below 0.01 nats", all(last(line) < 0.01 for line in sound["one_batch"])),
        (
            "no faulty one does, but the one whose labels are in another order",
            not any(last(line) < 0.01 for fault in sick for line in faults[fault]["one_batch"]),
        ),
        ("the preflight finds nothing in the sound set-up", not sound["preflight"]["code"]),
        ("it names each of the eight faults", all(named)),
        ("and gives at least seven of them as the root cause", sum(roots) >= 7),
        (
            "the sound set-up beats logistic regression, and no faulty one does",
            mean(sound["accuracy"]) > base["logistic regression"]
            and all(mean(faults[f]["accuracy"]) < base["logistic regression"] for f in FAULTS if f != "none"),
        ),
    ]


def table(found: Numbers) -> str:
    body = []
    for fault, row in found["faults"].items():
        flight = row["preflight"]
        lines = [line for line in row["one_batch"] if line]
        ends = f"{mean([last(line) for line in lines]):.2g}" if lines else "does not run"
        said = f"`{flight['code']}` {flight['name']}" if flight["code"] else "nothing"
        first = f"{mean([line[0] for line in lines]):.3g}" if lines else ""
        body.append([fault, first, ends, spread(row["accuracy"], 0), said])
    head = [
        "fault",
        "first loss",
        f"one batch, {ONE_BATCH} steps: loss",
        "held-out accuracy after 6 epochs, %",
        "the preflight says",
    ]
    base = [[name, f"{value:.1f}"] for name, value in found["baselines"].items()]
    return rows(head, body) + "\n\n" + rows(["baseline", "accuracy, %"], base)


def draw(found: Numbers) -> Figure:
    drawn, (left, right) = figure(4.3, 2, width_ratios=[1.2, 1])
    names = list(FAULTS)
    for number, fault in enumerate(names):
        line = found["faults"][fault]["one_batch"][0]
        if line:
            shown = [min(max(value, 1e-4), 1e4) for value in line]
            left.plot(shown, **LOOKS[number % 8] | {"markevery": 40 + 3 * number}, label=fault)
    left.axhline(math.log(10), color="#333333", lw=0.8, ls=":")
    left.set(
        yscale="log", ylim=(1e-4, 2e4), xlabel="step on the same batch", ylabel="loss, nats; dotted: a guess, ln 10"
    )
    left.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    for place, fault in enumerate(names):
        values = found["faults"][fault]["accuracy"]
        right.plot(mean(values), place, ls="", marker="o", ms=6, color=LOOKS[0]["color"])
    styles = (":", "--", "-.")
    for style, (name, value) in zip(styles, found["baselines"].items(), strict=True):
        right.axvline(value, color="#333333", lw=1, ls=style, label=name)
    right.set_yticks(range(len(names)), names, fontsize=7.5)
    right.invert_yaxis()
    right.set(xlabel="held-out accuracy, %", xlim=(-3, 103))
    right.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.3, -0.2))
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
