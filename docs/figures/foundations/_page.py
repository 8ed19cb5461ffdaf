"""What the experiments of the handbook share: real data, a plain loop, the look of a picture, where numbers go.

A script has four functions: ``measure`` trains and returns plain numbers, ``claims`` says what its page says and
whether the numbers bear it out, ``table`` and ``draw`` show them. ``run`` puts them together: a claim that does not
hold ends the script with an error and writes nothing.
"""

from __future__ import annotations

import io
import json
import math
import re
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight.losses import cross_entropy_loss

# Okabe and Ito's palette; every line has a marker or a dash of its own as well, so that grey is enough.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#8C8C8C"
LOOKS = tuple(
    {"color": color, "marker": marker, "ls": dash, "lw": 1.5, "ms": 4.5}
    for color, marker, dash in (
        (BLUE, "o", "-"),
        (RED, "s", "--"),
        (GREEN, "^", "-."),
        (ORANGE, "D", ":"),
        (PINK, "v", (0, (5, 1, 1, 1, 1, 1))),
        (SKY, "P", (0, (3, 1))),
        (BLACK, "X", (0, (1, 1))),
        (GREY, "*", "-"),
    )
)

FOLDER = Path(__file__).parent
PAGES = FOLDER.parents[1] / "explanation" / "foundations"

Numbers = dict[str, Any]
Claims = list[tuple[str, bool]]


# Data


@cache
def digits(*, images: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training inputs and labels (1297 handwritten digits of 8 x 8), then those held out (500), at unit scale."""
    from sklearn.datasets import load_digits

    found = load_digits()
    inputs = torch.tensor(found.data, dtype=torch.float32)
    inputs = (inputs - inputs.mean()) / inputs.std()
    if images:
        inputs = inputs.reshape(-1, 1, 8, 8)
    target = torch.tensor(found.target)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    return inputs[train], target[train], inputs[test], target[test]


@cache
def text() -> Tensor:
    """The help texts of Python as bytes, ``[600 thousand and some]``."""
    from pydoc_data.topics import topics

    return torch.frombuffer(bytearray("\n".join(topics[key] for key in sorted(topics)).encode()), dtype=torch.uint8)


# Training


def batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of ``steps`` batches: each epoch in a new order, every batch full."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


def train(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    *,
    optimizer: Optimizer,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy_loss,
    factor: Callable[[int], float] | None = None,
    before_step: Callable[[], Any] | None = None,
    after_step: Callable[[int], Any] | None = None,
) -> list[float]:
    """Train in a plain loop and return the loss of every step; the last is NaN where training broke off."""
    model.train()
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step, chosen in enumerate(batches(len(inputs), batch_size, steps, torch.Generator().manual_seed(seed))):
        if factor is not None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(step)
        value = loss(model(inputs[chosen]), target[chosen])
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            losses[-1] = math.nan
            break
        optimizer.zero_grad()
        value.backward()
        if before_step is not None:
            before_step()
        optimizer.step()
        if after_step is not None:
            after_step(step)
    return losses


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, target: Tensor) -> tuple[float, float]:
    """Cross-entropy in nats and accuracy, in eval mode."""
    model.eval()
    logits = model(inputs)
    return cross_entropy_loss(logits, target).item(), (logits.argmax(-1) == target).float().mean().item()


def perceptron(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


# Numbers


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds; how many runs broke, where some did."""
    sound = [value for value in values if math.isfinite(value)]
    if not sound:
        return "diverges"
    wide = statistics.stdev(sound) if len(sound) > 1 else 0.0
    broken = "" if len(sound) == len(values) else f" ({len(values) - len(sound)} of {len(values)} diverge)"
    return f"{statistics.mean(sound):.{digits}f} ± {wide:.{digits}f}{broken}"


def mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def median(values: Sequence[float]) -> float:
    """Median in which a run that diverged counts as infinitely bad."""
    return statistics.median(value if math.isfinite(value) else math.inf for value in values)


def rows(head: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


# Pictures


def figure(height: float, columns: int = 1, lines: int = 1, **kwargs: Any) -> tuple[Figure, list[Any]]:
    """Panels line by line, 720 pixels wide together."""
    drawn = Figure(figsize=(6.0, height), dpi=120, layout="constrained")
    panels = list(drawn.subplots(lines, columns, squeeze=False, **kwargs).flat)
    for panel in panels:
        panel.grid(color="#E6E6E6")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return drawn, panels


# From numbers to page


def run(
    script: str,
    measure: Callable[[], Numbers],
    claims: Callable[[Numbers], Claims],
    table: Callable[[Numbers], str],
    draw: Callable[[Numbers], Figure],
) -> None:
    """Measure, hold the claims against it, and write numbers, picture and table.

    With a folder on the command line numbers and picture go there, and the page stays as it is. With ``--draw`` the
    numbers are those that were written last.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name, given = Path(script).stem, sys.argv[1:]
    stored = FOLDER / f"{name}.json"
    found = json.loads(stored.read_text()) if "--draw" in given else _plain(measure())
    broken = [text for text, holds in claims(found) if not holds]
    folders = [Path(word) for word in given if not word.startswith("--")]
    folder = folders[0] if folders else FOLDER
    if broken:
        failed = Path(tempfile.gettempdir()) / f"{name}.json"
        failed.write_text(json.dumps(found, indent=1))
        raise SystemExit(f"{name}: what the page says does not hold, see {failed}: " + "; ".join(broken))
    (folder / f"{name}.json").write_text(json.dumps(found, separators=(",", ":"), allow_nan=True) + "\n")
    _save(draw(found), folder / f"{name}.png")
    page = PAGES / f"{name.replace('_', '-')}.md"
    if folder == FOLDER and page.is_file():
        page.write_text(filled(page.read_text(encoding="utf-8"), measured(found, claims, table)), encoding="utf-8")


def _save(drawn: Figure, path: Path) -> None:
    """In 256 colors, a third of the bytes."""
    from PIL import Image

    whole = io.BytesIO()
    drawn.savefig(whole)
    Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def measured(found: Numbers, claims: Callable[[Numbers], Claims], table: Callable[[Numbers], str]) -> str:
    """The part of a page that its script writes."""
    held = "\n".join(f"- {text}" for text, _ in claims(found))
    return f"\n{table(found)}\n\nThe script fails unless:\n\n{held}\n\n"


_PART = re.compile(r"(?<=^<!-- measured -->\n).*(?=^<!-- end of measured -->$)", re.MULTILINE | re.DOTALL)


def filled(page: str, part: str) -> str:
    """The page with its measured part replaced."""
    return _PART.sub(lambda _: part, page)


def _plain(value: Any) -> Any:
    """Five digits are more than a picture shows, and JSON turns keys into words."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return value
