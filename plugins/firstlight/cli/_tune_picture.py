"""One picture of a search: how it went, and what each key has to do with the value."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from firstlight.cli._tune_setup import Setup
from firstlight.cli._tune_space import Range

_BLUE, _ORANGE, _GREY, _INK = "#0072B2", "#E69F00", "#999999", "#333333"
_MOST_PANELS = 8


def draw(trials: dict[int, FrozenTrial], setup: Setup, path: Path) -> Path | None:
    """Draw the trials over time and over every key that was drawn; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    # No pyplot: it would choose a backend and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    complete = {i: t for i, t in trials.items() if t.state == TrialState.COMPLETE}
    names = list(dict.fromkeys(name for trial in complete.values() for name in trial.params))[:_MOST_PANELS]
    columns = min(3, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.0 * rows + 0.4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(setup.study, fontsize=12, color=_INK)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    _progress(axes[0], trials, setup)
    for axis, name in zip(axes[1:], names, strict=False):
        _over(axis, complete, name, setup)
    for axis in axes:
        axis.tick_params(labelsize=8, colors=_INK)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1 + len(names) :]:
        axis.set_visible(False)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    figure.savefig(part, format="png", metadata={"Software": None})
    return part.replace(path)


def _progress(axis: Any, trials: dict[int, FrozenTrial], setup: Setup) -> None:
    better = min if setup.mode == "min" else max
    indices: list[int] = []
    values: list[float] = []
    best: list[float] = []
    for index, trial in trials.items():
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            indices.append(index)
            values.append(trial.value)
            best.append(better([trial.value, *best[-1:]]))
    axis.plot(indices, values, "o", color=_BLUE, markersize=4, label="trial")
    axis.step(indices, best, where="post", color=_ORANGE, linewidth=1.5, label="best so far")
    others = [index for index, trial in trials.items() if trial.state in (TrialState.PRUNED, TrialState.FAIL)]
    # At the foot of the panel: they have no value to stand at.
    foot = axis.get_xaxis_transform()
    axis.plot(others, [0.02] * len(others), "|", color=_GREY, markersize=7, transform=foot, label="pruned or failed")
    axis.set_xlabel("trial", fontsize=9, color=_INK)
    axis.set_ylabel(setup.monitor, fontsize=9, color=_INK)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=7, frameon=False)


def _over(axis: Any, complete: dict[int, FrozenTrial], name: str, setup: Setup) -> None:
    pairs = [(t.params[name], t.value, i) for i, t in complete.items() if name in t.params]
    node = setup.space.get(name)
    if isinstance(pairs[0][0], str):
        options = list(dict.fromkeys(str(x) for x, _, _ in pairs))
        axis.set_xticks(range(len(options)), options)
        axis.set_xlim(-0.5, len(options) - 0.5)
        xs = [float(options.index(x)) for x, _, _ in pairs]
    else:
        xs = [x for x, _, _ in pairs]
        if isinstance(node, Range) and node.log:
            axis.set_xscale("log")
    axis.plot(xs, [value for _, value, _ in pairs], "o", color=_BLUE, markersize=4)
    before = [(x, value) for x, (_, value, index) in zip(xs, pairs, strict=True) if index == 0]
    if before:
        axis.plot(*before[0], "o", markersize=9, markerfacecolor="none", markeredgecolor=_ORANGE)
    axis.set_xlabel(name.replace("init_args.", ""), fontsize=9, color=_INK)
