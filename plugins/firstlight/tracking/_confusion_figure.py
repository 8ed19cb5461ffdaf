"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

_CELLS_UP_TO = 20  # more classes than this, and numbers in the cells cannot be read
_TICKS_UP_TO = 40


def confusion_figure(matrix: Tensor, class_names: Sequence[str] | None = None) -> Any:
    """Return a matplotlib figure of ``matrix[target, prediction]``: counts in the cells, colored by share of the row.

    It is drawn without pyplot, so no backend is chosen. Without ``class_names`` classes are shown by number.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = matrix.detach().cpu().double()
    classes, total = len(counts), int(counts.sum())
    names = [str(name) for name in class_names] if class_names is not None else [str(i) for i in range(classes)]
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)).tolist()

    side = min(2.6 + 0.38 * classes, 11.0) if classes <= _CELLS_UP_TO else 8.0
    figure = Figure(figsize=(side + 0.9, side), dpi=100, layout="tight", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    right = int(counts.diagonal().sum())
    axes.set_title(f"{right:,} of {total:,} right ({right / max(total, 1):.1%})", loc="left", fontsize=10)
    axes.set_xlabel("predicted")
    axes.set_ylabel("target")
    if classes <= _TICKS_UP_TO:
        slanted = max(map(len, names)) > 3
        axes.set_xticks(
            range(classes), names, fontsize=8, rotation=45 if slanted else 0, ha="right" if slanted else "center"
        )
        axes.set_yticks(range(classes), names, fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_color("#CCCCCC")
    if classes <= _CELLS_UP_TO:
        _write_counts(axes, counts.int().tolist(), shares)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=lambda share, _: f"{share:.0%}")
    bar.set_label("share of the target's row", fontsize=8)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def _write_counts(axes: Any, counts: list[list[int]], shares: list[list[float]]) -> None:
    for row, (counts_in_row, shares_in_row) in enumerate(zip(counts, shares, strict=True)):
        for column, (count, share) in enumerate(zip(counts_in_row, shares_in_row, strict=True)):
            if count:
                color = "white" if share > 0.55 else "#333333"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=color)
