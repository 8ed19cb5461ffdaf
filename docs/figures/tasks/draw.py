"""One picture of what the newest run of a project came to: ``draw.py TASK PROJECT``, as ``make demo`` leaves it."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils.data import default_collate

from firstlight.tracking import read_metrics

sys.path.append(str(Path(__file__).parents[1]))
from _small import BLUE, GREY, ORANGE, RED

TASK, PROJECT = sys.argv[1], Path(sys.argv[2]).resolve()
RUN = max((PROJECT / "runs").glob("*/*/metrics.csv"), key=lambda path: path.parent.name).parent
sys.path.insert(0, str(PROJECT / "src"))
torch.set_num_threads(1)


def axes(figure: Figure) -> Any:
    ax = figure.subplots()
    ax.grid(color="#E6E6E6")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def baseline() -> str:
    """The line that the project's baseline prints."""
    command = [sys.executable, "-m", "first_light.baseline"]
    done = subprocess.run(command, cwd=PROJECT / "src", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def tested(module_name: str, data_name: str) -> tuple[Any, Any]:
    """The module of the best checkpoint in evaluation mode, and the test part."""
    module_class = getattr(import_module("firstlight.modules"), module_name)
    data = getattr(import_module("first_light.data"), data_name)()
    data.setup("test")
    best = min((RUN / "checkpoints").glob("epoch*.ckpt"))
    return module_class.load_from_checkpoint(best, map_location="cpu").eval(), data.datasets["test"]


def tabular(figure: Figure) -> None:
    module, test = tested("SupervisedModule", "DiabetesDataModule")
    rows, target = test[:]
    with torch.no_grad():
        predicted = module(rows)
    r2 = 1 - float((predicted - target).square().sum() / (target - target.mean()).square().sum())
    ax = axes(figure)
    ax.plot([-2, 2.5], [-2, 2.5], color=GREY, linestyle="--", label="where they agree")
    ax.plot(target, predicted, "o", color=BLUE, markersize=4, alpha=0.7, label="a patient of the test part")
    ax.set(xlabel="progression a year later (deviations from the mean)", ylabel="predicted")
    ax.set_title(f"this recipe: test R2 {r2:.4f}\n{baseline()}", fontsize=10, loc="left")
    ax.legend(frameon=False, loc="upper left")


def language(figure: Figure) -> None:
    metrics, bits = read_metrics(RUN), math.log(2)
    line = baseline()
    ax = axes(figure)
    steps, losses = metrics["train/loss"]
    ax.plot(steps, [loss / bits for loss in losses], color=BLUE, linewidth=1, label="training batch")
    ax.plot(*metrics["val/bits_per_token"], "o-", color=ORANGE, label="validation part")
    ax.axhline(float(line.split()[-1]), color=GREY, linestyle="--", label=line.partition(":")[0])
    ax.set(xlabel="optimizer step", ylabel="bits a byte", ylim=(1.5, 4))
    ax.legend(frameon=False)


def ocr(figure: Figure) -> None:
    module, test = tested("TranscriptionModule", "StringsDataModule")
    images, labels = default_collate([test[index] for index in range(len(test))])
    read = module.predict_step(images, 0)["text"]
    true = ["".join(str(label - 1) for label in row) for row in labels.tolist()]
    wrong = [i for i in range(len(true)) if read[i] != true[i]]
    right = [i for i in range(len(true)) if read[i] == true[i]]
    shown = [*right[:9], *wrong[:3]]
    figure.suptitle(f"{len(right)} of {len(true)} strings read without a fault; below, some with one", fontsize=10)
    for ax, i in zip(figure.subplots(4, 3).flat, shown, strict=True):
        ax.imshow(images[i, 0], cmap="gray_r")
        ax.set_axis_off()
        ax.set_title(
            f"{read[i]}" + ("" if i in right else f"   is {true[i]}"), color=BLUE if i in right else RED, fontsize=9
        )


figure = Figure(figsize=(6.0, 3.2), layout="constrained")
{"tabular": tabular, "language": language, "ocr": ocr}[TASK](figure)
figure.savefig(Path(__file__).with_name(f"{TASK}.png"), dpi=100, metadata={"Software": None})
