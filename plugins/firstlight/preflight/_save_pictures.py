"""The pictures of a report as PNG files, by matplotlib."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from firstlight.preflight._images import visible
from firstlight.preflight._words import clean

# Okabe and Ito's colors: told apart by color-blind readers too.
_OWN, _REFERENCE, _CONSTANT, _UPDATE = "#0072B2", "#D55E00", "#555555", "#009E73"


def save_pictures(pictures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what there is of ``overfit``, ``schedule``, ``inputs`` and ``layers``; say so if nothing can draw."""
    if importlib.util.find_spec("matplotlib") is None:
        rank_zero_info("no pictures of the preflight: matplotlib is not installed; pip install 'firstlight[viz]'")
        return []
    # The object API: no pyplot, so no backend is chosen and no figure is kept for the user's session.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for name, draw in {"overfit": _overfit, "schedule": _schedule, "inputs": _inputs, "layers": _layers}.items():
        figure = Figure(figsize=(7.0, 4.0), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        if pictures.get(name) and draw(figure, pictures[name]):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing")  # a label in a script that the font lacks
                figure.savefig(folder / f"{name}.png", metadata={"Software": None})
            saved.append(folder / f"{name}.png")
    return saved


def _label(text: object) -> str:
    """Return a name as matplotlib can draw it: short, and with dollars that begin no formula."""
    short = clean(text)
    return (short if len(short) <= 32 else f"{short[:14]}…{short[-17:]}").replace("$", r"\$")


def _overfit(figure: Any, picture: Mapping[str, Any]) -> bool:
    axes = figure.subplots()
    for key, color, style in (("own", _OWN, "-"), ("reference", _REFERENCE, "--")):
        if picture.get(key):
            axes.plot(picture[key], color=color, linestyle=style, label=_label(picture.get(f"{key}_name", key)))
    if picture.get("constant") is not None:
        axes.axhline(picture["constant"], color=_CONSTANT, linestyle=":", label="best constant")
    axes.set(xlabel="optimizer step", ylabel="loss on one batch")
    axes.legend(frameon=False)
    return True


def _schedule(figure: Any, picture: Mapping[str, Any]) -> bool:
    axes = figure.subplots()
    for name, rates in picture.get("rates", {}).items():
        axes.plot(picture["steps"], rates, label=_label(name))
    axes.set(xlabel="optimizer step", ylabel="learning rate")
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False)
    return bool(picture.get("rates"))


def _inputs(figure: Any, picture: Mapping[str, Any]) -> bool:
    if picture.get("images"):
        images, low, high = visible(picture["images"])
        columns = min(6, len(images))
        grid = figure.subplots(-(-len(images) // columns), columns, squeeze=False).flat
        labels = picture.get("labels", [])
        for index, axes in enumerate(grid):
            axes.set_axis_off()
            if index < len(images):
                pixels = [[pixel * (3 // len(pixel)) for pixel in row] for row in images[index]]
                axes.imshow(pixels, interpolation="nearest")
                axes.set_title(_label(labels[index] if index < len(labels) else ""), fontsize=8)
        figure.suptitle(f"what the model receives: black {low:.3g}, white {high:.3g}", fontsize=9)
        return True
    if not picture.get("histogram"):
        return False
    axes = figure.subplots()
    axes.stairs(picture["histogram"]["counts"], picture["histogram"]["edges"], fill=True, color=_OWN)
    axes.set(xlabel="value that the model receives", ylabel="values")
    return True


def _layers(figure: Any, picture: Mapping[str, Any]) -> bool:
    names = picture.get("names", [])
    figure.set_size_inches(7.0, 1.2 + 0.22 * len(names))
    columns = [(key, color) for key, color in (("gradient", _OWN), ("update", _UPDATE)) if picture.get(key)]
    if not names or not columns:
        return False
    for axes, (key, color) in zip(
        figure.subplots(1, len(columns), sharey=True, squeeze=False)[0], columns, strict=True
    ):
        axes.barh(range(len(names)), picture[key], color=color)
        axes.set_yticks(range(len(names)), [_label(name) for name in names])
        axes.set_xscale("log" if any(value > 0 for value in picture[key]) else "linear")
        axes.set_xlabel(f"{key} / weight")
        axes.tick_params(labelsize=7)
    axes.invert_yaxis()  # shared: the first layer on top
    return True
