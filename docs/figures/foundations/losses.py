"""Losses of five kinds, each where it matters: outliers, calibration, representation, sequences, generation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from _page import BLUE, LOOKS, RED, Claims, Numbers, digits, figure, mean, perceptron, rows, run, spread, train
from _page import text as help_texts
from matplotlib.figure import Figure
from torch import Tensor, nn

from firstlight.initializers import initialize_
from firstlight.layers import GaussianNoise
from firstlight.losses import (
    AdversarialLoss,
    CrossEntropyLoss,
    CTCLoss,
    FocalLoss,
    GaussianKLLoss,
    HuberLoss,
    InfoNCELoss,
    L1Loss,
    LogCoshLoss,
    MSELoss,
    NTXentLoss,
    ReconstructionLoss,
    TripletLoss,
    sequence_cross_entropy_loss,
)
from firstlight.optimizers import Adam

SHARES = (0.0, 0.05, 0.1, 0.2)
REGRESSION: dict[str, nn.Module] = {
    "MSE": MSELoss(),
    "L1": L1Loss(),
    "Huber, delta 0.5": HuberLoss(delta=0.5),
    "log-cosh": LogCoshLoss(),
}
CLASSIFICATION: dict[str, nn.Module] = {
    "cross-entropy": CrossEntropyLoss(),
    "label smoothing, 0.1": CrossEntropyLoss(label_smoothing=0.1),
    "focal, gamma 2": FocalLoss(gamma=2.0),
}
SHORT = {
    f"{name}, {steps} steps": f"{word}, {steps}"
    for name, word in zip(CLASSIFICATION, ("plain", "smoothing", "focal"), strict=True)
    for steps in (100, 1000)
} | {"triplet, with all labels": "triplet (labels)"}
BETAS = (0.0, 0.25, 1.0, 4.0)
KINDS = ("non_saturating", "hinge", "least_squares", "wasserstein")
SEEDS = range(3)


def regression(loss: nn.Module, share: float, seed: int) -> float:
    """Mean absolute error on sound targets, in standard deviations, after training with some that are wrong by ten."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes()
    inputs, target = torch.tensor(found.data).float(), torch.tensor(found.target).float()
    inputs, target = inputs / inputs.std(0), (target - target.mean()) / target.std()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    inputs, target = inputs[order], target[order]
    fitted, held_out, answers = inputs[:300], inputs[300:], target[300:]
    wrong = target[:300].clone()
    wrong[: int(300 * share)] += 10
    torch.manual_seed(seed)
    model = nn.Linear(10, 1)
    optimizer = Adam(model.parameters(), lr=0.05)
    train(model, fitted, wrong[:, None], optimizer=optimizer, steps=200, batch_size=300, loss=loss)
    with torch.no_grad():
        return float((model(held_out)[:, 0] - answers).abs().mean())


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 10) -> float:
    """How far confidence and accuracy are apart, in the mean over ten bins of confidence."""
    confidence, guess = logits.softmax(-1).max(-1)
    right = (guess == labels).float()
    which = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [
        (which == b).float().mean() * (confidence[which == b].mean() - right[which == b].mean()).abs()
        for b in which.unique()
    ]
    return float(torch.stack(gaps).sum())


def classification(loss: nn.Module, steps: int, seed: int) -> dict[str, float]:
    """150 digits, a fifth of whose labels are wrong: how sure is the network of what it says?"""
    inputs, target, held_out, answers = digits()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(inputs), generator=generator)[:150]
    labels = target[chosen].clone()
    labels[:30] = torch.randint(10, (30,), generator=generator)
    torch.manual_seed(seed)
    model = perceptron(64, 64, 10)
    initialize_(model)
    optimizer = Adam(model.parameters(), lr=3e-3)
    train(model, inputs[chosen], labels, optimizer=optimizer, steps=steps, batch_size=50, loss=loss, seed=seed)
    with torch.no_grad():
        logits = model(held_out)
    value = nn.functional.cross_entropy(logits, answers).item()
    accuracy = 100 * (logits.argmax(-1) == answers).float().mean().item()
    return {"accuracy": accuracy, "loss": value, "error": 100 * calibration_error(logits, answers)}


def probe(features: Tensor, target: Tensor, held_out: Tensor, answers: Tensor) -> float:
    """Accuracy of the nearest class mean, from ten labels a class."""
    features, held_out = nn.functional.normalize(features, dim=-1), nn.functional.normalize(held_out, dim=-1)
    means = torch.stack([features[target == label][:10].mean(0) for label in range(10)])
    return 100 * float(((held_out @ means.T).argmax(-1) == answers).float().mean())


def representation(name: str, seed: int) -> float:
    inputs, target, held_out, answers = digits()
    if name == "pixels":
        return probe(inputs, target, held_out, answers)
    torch.manual_seed(seed)
    encoder = perceptron(64, 256, 64, 32)
    initialize_(encoder)
    noise = GaussianNoise(0.5)

    def shifted(x: Tensor) -> Tensor:
        """Each image by up to a pixel, brighter or darker, with noise."""
        padded = nn.functional.pad(x.reshape(-1, 8, 8), (1, 1, 1, 1), value=float(x.min()))
        down, right = (torch.randint(3, (len(x), 1)) + torch.arange(8) for _ in range(2))
        moved = padded[torch.arange(len(x))[:, None, None], down[:, :, None], right[:, None, :]].flatten(1)
        return noise(moved * (0.7 + 0.6 * torch.rand(len(x), 1)))

    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "NT-Xent": lambda x, _: NTXentLoss(temperature=0.5)(encoder(shifted(x)), encoder(shifted(x))),
        "InfoNCE": lambda x, _: InfoNCELoss(temperature=0.5)(encoder(shifted(x)), encoder(shifted(x))),
        "triplet, with all labels": lambda x, y: TripletLoss(margin=0.5, mining="batch_hard")(
            nn.functional.normalize(encoder(x), dim=-1), y
        ),
    }
    if name in losses:
        optimizer = Adam(encoder.parameters(), lr=3e-3)
        train(
            nn.Identity(), inputs, target, optimizer=optimizer, steps=250, batch_size=256, loss=losses[name], seed=seed
        )
    with torch.no_grad():
        return probe(encoder(inputs), target, encoder(held_out), answers)


def bigram() -> tuple[list[float], float]:
    """Bits per byte of a table of next bytes, trained by sequence cross-entropy, and what counting says is possible."""
    data = help_texts()[:100_000].long().clamp(max=127)
    counts = torch.zeros(128, 128, dtype=torch.float64)
    counts.index_put_((data[:-1], data[1:]), torch.ones(len(data) - 1, dtype=torch.float64), accumulate=True)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = -float((counts * share.clamp(min=1e-300).log2()).sum() / counts.sum())
    windows = data[: 1562 * 64].reshape(-1, 64)
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = nn.Embedding(128, 128)
        nn.init.zeros_(model.weight)
        train(
            model, windows[:, :-1], windows[:, 1:], optimizer=Adam(model.parameters(), lr=0.1), steps=250,
            batch_size=64, loss=sequence_cross_entropy_loss, seed=seed, factor=lambda step: 1 - step / 250,
        )  # fmt: skip
        with torch.no_grad():
            logits = model(windows[:, :-1])
            found.append(float(sequence_cross_entropy_loss(logits, windows[:, 1:])) / math.log(2))
    return found, entropy


def transcription(seed: int) -> list[float]:
    """Character error rate, in %, before and after training on strips of four digits without their positions."""
    inputs, target, held_out, answers = digits()
    generator = torch.Generator().manual_seed(seed)

    def strips(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (count, 4), generator=generator)
        return images[chosen].reshape(count, 4, 8, 8).transpose(1, 2).reshape(count, 1, 8, 32), labels[chosen] + 1

    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 64, (8, 8), padding=(0, 4)), nn.ReLU(), nn.Flatten(2), nn.Conv1d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv1d(64, 11, 1),
    )  # fmt: skip
    initialize_(model)
    x, y = strips(inputs, target, 1000)
    test, wanted = strips(held_out, answers, 200)
    ctc = CTCLoss(blank=0)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        frames = logits.permute(2, 0, 1).log_softmax(-1)
        return ctc(frames, labels, torch.full((len(labels),), len(frames)), torch.full((len(labels),), 4))

    def error() -> float:
        with torch.no_grad():
            best = model(test).argmax(1)
        wrong = 0
        for path, word in zip(best, wanted, strict=True):
            said = [int(c) for c in torch.unique_consecutive(path) if c]
            wrong += edits(said, word.tolist())
        return 100 * wrong / wanted.numel()

    before = error()
    train(model, x, y, optimizer=Adam(model.parameters(), lr=3e-3), steps=250, batch_size=32, loss=loss, seed=seed)
    return [before, error()]


def edits(said: list[int], wanted: list[int]) -> int:
    """Insertions, deletions and replacements from one to the other (Levenshtein)."""
    line = list(range(len(wanted) + 1))
    for i, a in enumerate(said, 1):
        line, above = [i], line
        for j, b in enumerate(wanted, 1):
            line.append(min(above[j] + 1, line[-1] + 1, above[j - 1] + (a != b)))
    return line[-1]


def vae(beta: float, seed: int) -> dict[str, float]:
    """Squared-error reconstruction (a Gaussian of unit width) and KL on held-out digits."""
    inputs, target, held_out, _ = digits()
    torch.manual_seed(seed)
    encoder, decoder = perceptron(64, 64, 16), perceptron(8, 64, 64)
    initialize_(encoder)
    initialize_(decoder)
    reconstruction, kl = ReconstructionLoss(likelihood="gaussian"), GaussianKLLoss()

    def terms(x: Tensor) -> tuple[Tensor, Tensor]:
        center, log_variance = encoder(x).chunk(2, -1)
        code = center + (0.5 * log_variance).exp() * torch.randn_like(center)
        return reconstruction(decoder(code), x), kl(center, log_variance)

    def loss(x: Tensor, _: Tensor) -> Tensor:
        first, second = terms(x)
        return first + beta * second

    optimizer = Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    train(nn.Identity(), inputs, target, optimizer=optimizer, steps=300, loss=loss, seed=seed)
    with torch.no_grad():
        first, second = terms(held_out)
    return {"reconstruction": first.item(), "kl": second.item()}


def pull(kind: str, logit: float) -> float:
    """Length of the gradient that a generator gets through a critic that gives its sample this logit."""
    fake = torch.tensor([logit], requires_grad=True)
    AdversarialLoss(kind=kind).generator(fake).backward()  # type: ignore[arg-type]
    return abs(float(fake.grad))  # type: ignore[arg-type]


def measure() -> Numbers:
    bits, entropy = bigram()
    names = ("pixels", "random weights", "NT-Xent", "InfoNCE", "triplet, with all labels")
    return {
        "regression": {
            n: {s: [regression(loss, s, seed) for seed in range(5)] for s in SHARES} for n, loss in REGRESSION.items()
        },
        "classification": {
            f"{name}, {steps} steps": [classification(loss, steps, seed) for seed in range(5)]
            for steps in (100, 1000)
            for name, loss in CLASSIFICATION.items()
        },
        "representation": {name: [representation(name, seed) for seed in SEEDS] for name in names},
        "bits": bits,
        "entropy": entropy,
        "ctc": [transcription(seed) for seed in SEEDS],
        "vae": {beta: [vae(beta, seed) for seed in SEEDS] for beta in BETAS},
        "pull": {kind: [pull(kind, logit) for logit in (-4.0, 0.0, 4.0)] for kind in KINDS},
    }


def claims(found: Numbers) -> Claims:
    reg = {name: {float(s): mean(v) for s, v in line.items()} for name, line in found["regression"].items()}
    cls = {n: {k: mean([r[k] for r in runs]) for k in runs[0]} for n, runs in found["classification"].items()}
    rep = {name: mean(values) for name, values in found["representation"].items()}
    kl = [mean([r["kl"] for r in runs]) for runs in found["vae"].values()]
    rec = [mean([r["reconstruction"] for r in runs]) for runs in found["vae"].values()]
    return [
        (
            "on sound targets the four regression losses are within 5 % of each other",
            max(v[0.0] for v in reg.values()) < 1.05 * min(v[0.0] for v in reg.values()),
        ),
        (
            "with a fifth of the targets wrong the error of MSE is at least twice that of L1",
            reg["MSE"][0.2] > 2 * reg["L1"][0.2],
        ),
        (
            "after 1000 steps on wrong labels smoothing and focal loss each lower the held-out cross-entropy",
            max(cls[f"{n}, 1000 steps"]["loss"] for n in list(CLASSIFICATION)[1:])
            < cls["cross-entropy, 1000 steps"]["loss"],
        ),
        (
            "after 100 steps each of them raises it",
            min(cls[f"{n}, 100 steps"]["loss"] for n in list(CLASSIFICATION)[1:])
            > cls["cross-entropy, 100 steps"]["loss"],
        ),
        (
            "without a label NT-Xent and InfoNCE are at least 10 points above random weights",
            min(rep["NT-Xent"], rep["InfoNCE"]) > rep["random weights"] + 10,
        ),
        (
            "sequence cross-entropy brings a table of next bytes to within 3 % of its entropy",
            all(0 <= b / found["entropy"] - 1 < 0.03 for b in found["bits"]),
        ),
        ("with all labels the triplet loss is above 95 %", rep["triplet, with all labels"] > 95),
        (
            "CTC brings the character error rate below 25 % without having seen a position",
            max(r[1] for r in found["ctc"]) < 25,
        ),
        (
            "a larger beta lowers the KL and raises the reconstruction error of a VAE",
            kl == sorted(kl)[::-1] and rec == sorted(rec),
        ),
        (
            "the non-saturating loss pulls with over 0.9 where the critic is sure, under 0.1 where it is fooled",
            found["pull"]["non_saturating"][0] > 0.9 and found["pull"]["non_saturating"][2] < 0.1,
        ),
    ]


def table(found: Numbers) -> str:
    part: list[str] = [
        "**Regression**: mean absolute error on sound held-out targets, by share of training targets that are wrong."
    ]
    body: list[list[Any]] = [[n, *(spread(v, 2) for v in line.values())] for n, line in found["regression"].items()]
    part.append(rows(["loss", *(f"{100 * share:.0f} %" for share in SHARES)], body))
    part.append("**Classification**: 150 digits, a fifth of the labels wrong; held out.")
    keys = (("accuracy", 1), ("loss", 2), ("error", 1))
    body = [[n, *(spread([r[k] for r in runs], d) for k, d in keys)] for n, runs in found["classification"].items()]
    part.append(rows(["loss", "accuracy, %", "cross-entropy, nats", "calibration error, %"], body))
    part.append("**Representation**: accuracy of the nearest class mean from ten labels a class.")
    part.append(rows(["features", "accuracy, %"], [[n, spread(v, 1)] for n, v in found["representation"].items()]))
    part.append("**Sequences**: strips of four digits (CTC), and a table of next bytes (sequence cross-entropy).")
    before, after = ([run[k] for run in found["ctc"]] for k in (0, 1))
    body = [["CTC: character error rate, %", spread(before, 0), spread(after, 1)]]
    body.append(["next byte: bits per byte", "7.00", f"{spread(found['bits'], 3)}; possible: {found['entropy']:.3f}"])
    part.append(rows(["", "before training", "after"], body))
    part.append(
        "**Generation**: a VAE of 8 latent numbers on held-out digits; and the pull of four adversarial losses."
    )
    keys = (("reconstruction", 1), ("kl", 1))
    body = [[beta, *(spread([r[k] for r in runs], d) for k, d in keys)] for beta, runs in found["vae"].items()]
    part.append(rows(["beta", "reconstruction, nats", "KL, nats"], body))
    body = [[f"`{kind}`", *(f"{value:.2f}" for value in values)] for kind, values in found["pull"].items()]
    part.append(rows(["gradient at the critic's logit of a fake", "−4", "0", "4"], body))
    return "\n\n".join(part)


def draw(found: Numbers) -> Figure:
    drawn, (outliers, classes, features, rate) = figure(5.2, 2, 2)
    for look, (name, line) in zip(LOOKS, found["regression"].items(), strict=False):
        outliers.plot([100 * s for s in SHARES], [mean(v) for v in line.values()], **look, label=name)
    outliers.set(xlabel="wrong training targets, %", ylabel="mean absolute error", ylim=(0, None))
    outliers.set_title("regression", fontsize=9)
    outliers.legend(frameon=False, fontsize=8)
    for panel, values, title, label in (
        (
            classes,
            {n: [r["loss"] for r in runs] for n, runs in found["classification"].items()},
            "classification, wrong labels",
            "held-out cross-entropy, nats",
        ),
        (features, found["representation"], "representation", "accuracy with ten labels a class, %"),
    ):
        for place, line in enumerate(values.values()):
            panel.plot(line, [place] * len(line), ls="", marker="o", ms=5, mfc="none", color=BLUE)
            panel.plot(mean(line), place, marker="|", ms=14, mew=2.5, color=RED)
        panel.set_yticks(range(len(values)), [SHORT.get(n, n) for n in values], fontsize=8)
        panel.set_ylim(len(values) - 0.5, -0.5)
        panel.set_xlabel(label)
        panel.set_title(title, fontsize=9)
    for look, (beta, runs) in zip(LOOKS, found["vae"].items(), strict=False):
        rate.plot(
            [r["kl"] for r in runs],
            [r["reconstruction"] for r in runs],
            **look | {"ls": ""},
            label=f"beta {float(beta):g}",
        )
    rate.set(xlabel="KL, nats", ylabel="reconstruction, nats", xscale="symlog")
    rate.set_title("generation: VAE", fontsize=9)
    rate.legend(frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    run(__file__, measure, claims, table, draw)
