import csv
import math
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from firstlight.tracking import confusion_figure, plot_run
from firstlight.tracking._plot_run import panels_of


def write(folder, columns):
    """Write ``{key: [(step, value), ...]}`` as CSVLogger does."""
    rows = [{"step": step, key: value} for key, points in columns.items() for step, value in points]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)


def full(steps=200):
    every = range(steps)
    return {
        "train/loss": [(s, 2.0 * math.exp(-s / 50)) for s in every],
        "val/loss": [(s, 2.1 * math.exp(-s / 50)) for s in every[::20]],
        "val/accuracy": [(s, 1 - math.exp(-s / 50)) for s in every[::20]],
        "val/perplexity": [(s, 10.0 + s) for s in every[::20]],
        "lr/decay": [(s, 0.1) for s in every],
        "lr/no_decay": [(s, 0.1) for s in every],
        "grad/norm/total": [(s, 5.0 / (s + 1)) for s in every],
        "grad/clipped_norm": [(s, min(1.0, 5.0 / (s + 1))) for s in every],
        "grad/clip_rate": [(s, 0.5) for s in every],
        "test/accuracy": [(steps, 0.98)],
    }


@pytest.fixture
def messages(caplog):
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    return lambda: [r.getMessage() for r in caplog.records]


def test_a_run_becomes_a_png_and_pyplot_is_left_alone(tmp_path):
    write(tmp_path, full())
    backend, settings = mpl.get_backend(), dict(mpl.rcParams)
    path = plot_run(tmp_path)
    assert path == tmp_path / "run.png"
    pixels = mpl.image.imread(path)
    assert pixels.shape[0] > pixels.shape[1] > 1000
    assert mpl.get_backend() == backend
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == []
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".csv"] == ["run.png"]


def test_panels_follow_the_step_and_only_what_was_logged():
    metrics = {k: tuple(map(list, zip(*v, strict=True))) for k, v in full().items()}
    assert [panel.title for panel in panels_of(metrics)] == [
        "Loss",
        "Validation accuracy",
        "Validation perplexity",
        "Learning rate",
        "Gradient norm (L2)",
        "Clip rate",
    ]
    (rates,) = (panel.curves for panel in panels_of(metrics) if panel.title == "Learning rate")
    assert [curve.label for curve in rates] == ["decay, no_decay"]  # groups with one rate are one line
    only = {"train/loss": metrics["train/loss"]}
    assert [panel.title for panel in panels_of(only)] == ["Loss"]
    assert panels_of({"epoch": ([0], [0.0]), "train/loss": ([], [])}) == []


def test_a_real_fit_can_be_drawn(tmp_path, fit):
    fit(CSVLogger(tmp_path, name="", version=""))
    assert plot_run(tmp_path) == tmp_path / "run.png"


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0)],
        [(0, 0.0), (1, 0.0)],
        [(0, -1.0), (1, 1000.0)],
        [(0, math.nan), (1, 1.0), (2, math.inf)],
        [(5, 1.0), (0, 2.0)],
        [(s, 1e-12 * 10**s) for s in range(20)],
    ],
)
def test_odd_values_are_drawn(points, tmp_path):
    keys = ("train/loss", "val/loss", "val/accuracy", "lr/a", "grad/norm/total", "grad/clip_rate")
    write(tmp_path, dict.fromkeys(keys, points))
    assert plot_run(tmp_path) == tmp_path / "run.png"


def test_a_long_run_is_drawn_in_seconds(tmp_path):
    write(tmp_path, {"train/loss": [(s, 1.0 / (s + 1)) for s in range(50_000)]})
    assert plot_run(tmp_path) == tmp_path / "run.png"


def test_nothing_to_draw_is_one_line(tmp_path, messages):
    assert plot_run(tmp_path) is None
    write(tmp_path, {"epoch": [(0, 0)], "train/loss": [(0, math.nan)]})
    assert plot_run(tmp_path) is None
    assert ["no metrics at" in messages()[0], "nothing to draw" in messages()[1], len(messages())] == [True, True, 2]
    assert not (tmp_path / "run.png").exists()


def test_without_matplotlib_it_is_one_line(tmp_path, messages, monkeypatch):
    write(tmp_path, full())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot_run(tmp_path) is None
    assert messages() == ["no picture of the run: matplotlib is not installed; pip install 'firstlight[viz]'"]


@pytest.mark.parametrize("classes", [2, 10, 30, 60])
def test_confusion_figure_shows_counts_and_names(classes):
    matrix = torch.randint(0, 9, (classes, classes))
    names = [f"class {i}" for i in range(classes)]
    figure = confusion_figure(matrix, names)
    axes = figure.axes[0]
    counts = {tuple(map(int, reversed(text.get_position()))): int(text.get_text()) for text in axes.texts}
    wanted = {(r, c): int(matrix[r, c]) for r in range(classes) for c in range(classes) if matrix[r, c]}
    assert counts == (wanted if classes <= 20 else {})
    assert [label.get_text() for label in axes.get_yticklabels()] == names or classes > 40
    right = int(matrix.diagonal().sum())
    assert axes.get_title(loc="left") == f"{right:,} of {int(matrix.sum()):,} right ({right / int(matrix.sum()):.1%})"
    figure.canvas.draw()
    assert plt.get_fignums() == []


def test_an_empty_class_has_an_empty_row():
    figure = confusion_figure(torch.tensor([[3, 0], [0, 0]]))
    assert figure.axes[0].images[0].get_array().tolist() == [[1.0, 0.0], [0.0, 0.0]]
