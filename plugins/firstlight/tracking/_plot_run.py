"""One picture of a run, from its ``metrics.csv``."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from firstlight.tracking._metrics_csv import read_metrics

# Okabe and Ito's colors: told apart by color-blind readers too.
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
_COLORS = (_BLUE, _ORANGE, _GREEN, _PURPLE, _RED, "#56B4E9")
_INK, _GRID = "#333333", "#E6E6E6"
_LOG_FROM = 20.0  # a range of values wider than this factor is drawn on a log scale
_SMOOTH_FROM = 60  # a curve with at least so many points gets a smoothed one drawn over it


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    steps: list[int]
    values: list[float]
    color: str
    noisy: bool = False
    dashed: bool = False
    points: bool = False  # few values, each worth a dot
    best: str = ""  # "min" marks the lowest point

    @property
    def finite(self) -> list[float]:
        """The values that can be drawn."""
        return [value for value in self.values if math.isfinite(value)]


@dataclass(frozen=True)
class Panel:
    """One row of the picture."""

    title: str
    curves: tuple[Curve, ...]
    height: float = 1.0
    share: bool = False  # values are parts of one, shown in percent


def plot_run(run_dir: str | os.PathLike[str]) -> Path | None:
    """Draw loss, metrics, learning rates, gradient norms and clip rate over optimizer steps into ``run_dir/run.png``.

    Only what was logged gets a panel. Returns None, and says why in one line, when matplotlib is not installed or
    there is nothing to draw.
    """
    folder = Path(run_dir)
    if importlib.util.find_spec("matplotlib") is None:
        rank_zero_info("no picture of the run: matplotlib is not installed; pip install 'firstlight[viz]'")
        return None
    try:
        metrics = read_metrics(folder)
    except (FileNotFoundError, ValueError) as error:
        rank_zero_info(f"no picture of the run: {error}")
        return None
    panels = panels_of(metrics)
    if not panels:
        rank_zero_info(f"no picture of the run: nothing to draw in {folder / 'metrics.csv'}")
        return None
    return _save(_draw(panels, title=_title(folder), subtitle=_subtitle(metrics)), folder / "run.png")


Metrics = dict[str, tuple[list[int], list[float]]]


def panels_of(metrics: Metrics) -> list[Panel]:
    """Sort what was logged into panels, top to bottom in the order of the step."""
    panels = [_loss(metrics), *_metrics(metrics), _learning_rate(metrics), _gradient(metrics), _clip_rate(metrics)]
    return [panel for panel in panels if any(curve.finite for curve in panel.curves)]


def _curve(metrics: Metrics, key: str, label: str, color: str, **options: Any) -> list[Curve]:
    if key not in metrics:
        return []
    steps, values = metrics[key]
    order = sorted(range(len(steps)), key=steps.__getitem__)  # a resumed run may have gone back
    return [Curve(label, [steps[i] for i in order], [values[i] for i in order], color, **options)]


def _loss(metrics: Metrics) -> Panel:
    train_key = "train/loss" if "train/loss" in metrics else "train/loss_step"
    train = _curve(metrics, train_key, "train", _BLUE, noisy=True)
    return Panel(
        "Loss", (*train, *_curve(metrics, "val/loss", "validation", _ORANGE, points=True, best="min")), height=1.6
    )


def _metrics(metrics: Metrics) -> list[Panel]:
    """Put metrics that are parts of one (accuracy, F1) into one panel, and give each other one its own."""
    names = sorted(k for k in metrics if k.startswith("val/") and k.count("/") == 1 and k != "val/loss")
    found = [c for i, k in enumerate(names) for c in _curve(metrics, k, k[4:], _COLORS[i % len(_COLORS)], points=True)]
    parts = [c for c in found if c.finite and all(0.0 <= v <= 1.0 for v in c.finite)]
    others = [c for c in found if c not in parts]
    panels = [Panel("Validation metrics" if len(parts) > 1 else f"Validation {c.label}", tuple(parts), share=True)
              for c in parts[:1]]  # fmt: skip
    return panels + [Panel(f"Validation {c.label}", (c,)) for c in others]


def _learning_rate(metrics: Metrics) -> Panel:
    """Draw groups that share one rate as one line."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for key in sorted(k for k in metrics if k.startswith(("lr/", "lr-"))):
        groups.setdefault(tuple(metrics[key][1]), []).append(key)
    curves: list[Curve] = []
    for i, keys in enumerate(groups.values()):
        label = ", ".join(key[3:] for key in keys)
        curves += _curve(metrics, keys[0], label, _COLORS[i % len(_COLORS)])
    return Panel("Learning rate", tuple(curves))


def _gradient(metrics: Metrics) -> Panel:
    before = _curve(metrics, "grad/norm/total", "before clipping", _GREEN, noisy=True)
    after = _curve(metrics, "grad/clipped_norm", "after clipping", _PURPLE, noisy=True, dashed=True)
    return Panel("Gradient norm (L2)", (*before, *after))


def _clip_rate(metrics: Metrics) -> Panel:
    rate = _curve(metrics, "grad/clip_rate", "steps clipped", _RED)
    return Panel("Clip rate", tuple(rate), height=0.6, share=True)


def _title(folder: Path) -> str:
    return " / ".join(folder.resolve().parts[-2:])


def _subtitle(metrics: Metrics) -> str:
    """Say what the run came to: the best validation loss, and what the test found."""
    said = []
    if "val/loss" in metrics:
        steps, values = metrics["val/loss"]
        finite = [(value, step) for value, step in zip(values, steps, strict=True) if math.isfinite(value)]
        if finite:
            said.append("best validation loss {:.4g} at step {:,}".format(*min(finite)))
    broken = [s for s, v in zip(*metrics.get("train/loss", ([], [])), strict=True) if not math.isfinite(v)]
    if broken:
        said.append(f"train loss not finite from step {min(broken):,}")
    tests = sorted(k for k in metrics if k.startswith("test/") and k.count("/") == 1)
    said += [f"{key} {metrics[key][1][-1]:.4g}" for key in tests[:3]]
    return "   ·   ".join(said)


def _draw(panels: Sequence[Panel], *, title: str, subtitle: str) -> Any:
    # The object API: no pyplot, so no backend is chosen and no figure is kept for the user's session.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(9.0, 1.0 + 1.75 * sum(heights)), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    head = {"xy": (0.0, 1.0), "xycoords": "axes fraction", "textcoords": "offset points"}
    rows[0].annotate(title, xytext=(0, 42), fontsize=13, fontweight="bold", color=_INK, **head)
    rows[0].annotate(subtitle, xytext=(0, 27), fontsize=9, color="#666666", **head)
    for row, panel in zip(rows, panels, strict=True):
        _draw_panel(row, panel)
    rows[-1].set_xlabel("optimizer step", fontsize=9, color=_INK)
    last = max(max(curve.steps) for panel in panels for curve in panel.curves)
    rows[-1].set_xlim(0, max(last, 1))
    rows[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_panel(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontsize=10, color=_INK)
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors=_INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    for curve in panel.curves:
        _draw_curve(axes, curve)
    _set_scale(axes, panel)
    _mark_non_finite(axes, panel.curves)
    if len(panel.curves) > 1 or panel.title == "Learning rate":
        axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, borderpad=0.0,
                    labelcolor=_INK, handlelength=1.6)  # fmt: skip


def _set_scale(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    values = [value for curve in panel.curves for value in curve.finite]
    low, high = min(values), max(values)
    if panel.share:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        spread = max(high - low, 0.1)  # no drama out of half a percent
        bounds = (0.0, 1.0) if panel.title == "Clip rate" else (high - spread, low + spread)
        axes.set_ylim(max(bounds[0], 0.0) - 0.05 * spread, min(bounds[1], 1.0) + 0.05 * spread)
    elif low > 0.0 and high / low > _LOG_FROM and not _is_smooth_schedule(panel):
        axes.set_yscale("log")
        subs = (1.0,) if high / low > 1000.0 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif low >= 0.0 and panel.title == "Learning rate":
        axes.set_ylim(bottom=0.0)


def _is_smooth_schedule(panel: Panel) -> bool:
    """A warm-up or a cosine reads best on a linear scale; steps by a factor of ten read best on a log scale."""
    return panel.title == "Learning rate" and len({v for c in panel.curves for v in c.finite}) > 12


def _draw_curve(axes: Any, curve: Curve) -> None:
    smooth = curve.noisy and len(curve.values) >= _SMOOTH_FROM
    dots = (curve.points and len(curve.values) <= 60) or len(curve.values) == 1
    style = (0, (3, 1.5)) if curve.dashed else "-"
    axes.plot(
        curve.steps,
        [value if math.isfinite(value) else math.nan for value in curve.values],
        color=curve.color,
        linewidth=0.8 if smooth else 1.5,
        alpha=0.35 if smooth else 1.0,
        linestyle=style,
        marker="o" if dots else None,
        markersize=3.5,
        label=None if smooth else curve.label,
    )
    if smooth:
        axes.plot(
            curve.steps, _smoothed(curve.values), color=curve.color, linewidth=1.7, linestyle=style, label=curve.label
        )
    if curve.best and curve.finite:
        best = min(curve.finite)
        step = curve.steps[curve.values.index(best)]
        axes.plot([step], [best], "o", markersize=8, markerfacecolor="none", markeredgecolor=curve.color)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean over a centered window of a thirtieth of the run, over what is finite in it."""
    half = max(len(values) // 60, 1)
    sums = [0.0, *itertools.accumulate(v if math.isfinite(v) else 0.0 for v in values)]
    counts = [0, *itertools.accumulate(int(math.isfinite(v)) for v in values)]
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (counts[b] - counts[a]) if counts[b] > counts[a] else math.nan for a, b in windows]


def _mark_non_finite(axes: Any, curves: Iterable[Curve]) -> None:
    steps = [s for c in curves for s, v in zip(c.steps, c.values, strict=True) if not math.isfinite(v)]
    if steps:
        # At the foot of the panel, whatever its scale: a gap alone is easily missed.
        axes.plot(steps, [0.03] * len(steps), "x", color=_RED, markersize=5, transform=axes.get_xaxis_transform())
        axes.text(0.01, 0.1, f"not finite from step {min(steps):,}", transform=axes.transAxes, fontsize=8, color=_RED)


def _save(figure: Any, path: Path) -> Path:
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", metadata={"Software": None})
    return part.replace(path)
