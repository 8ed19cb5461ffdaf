"""All that the reference lists reaches W&B: read back from the file that wandb wrote, against the CSV beside it."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torchmetrics.classification import MulticlassAccuracy

from firstlight.callbacks import (
    GradientMonitor,
    LearningRateScheduler,
    PredictionSamples,
    RunManifest,
    WeightInitialization,
)
from firstlight.regularizers import L2Penalty
from firstlight.schedules import WarmupCosine
from firstlight.tracking import SafeWandbLogger, read_offline_run
from helpers import fit, loader, supervised

BLOCKS = ("model.0", "model.1", "model.4")
KEYS = {
    "train/loss",
    "train/loss/task",
    "train/penalty/l2",
    "val/loss",
    "val/loss/task",
    "val/accuracy",
    "lr/decay",
    "lr/no_decay",
    "grad/norm/total",
    "grad/clipped_norm",
    "grad/clip_rate",
    "grad/nonfinite_steps",
    *(f"grad/norm/{block}" for block in BLOCKS),
    *(f"update/ratio/{block}" for block in BLOCKS),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        logger = SafeWandbLogger(save_dir=folder, project="tests")
        module = supervised(
            penalties=[L2Penalty(0.01)], metrics={"accuracy": MulticlassAccuracy(num_classes=4, average="micro")}
        )
        fit(
            module,
            WeightInitialization(),
            LearningRateScheduler(WarmupCosine(0.2)),
            GradientMonitor(),
            PredictionSamples(num_samples=5),
            RunManifest(),
            val=loader(shuffle=False),
            logger=[CSVLogger(folder / "csv", "", ""), logger],
            gradient_clip_val=0.5,
            log_every_n_steps=3,
        )
        logger.finish()
    return module, read_offline_run(logger.offline_dir), folder / "csv"


def in_csv(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value and key not in ("step", "epoch"):
                    found[key][int(row["step"])] = float(value)
    return found


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_is_there_with_the_values_of_the_csv(run, key):
    _, logged, folder = run
    steps, values = logged.series(key)
    expected = in_csv(folder)[key]
    assert dict(zip(steps, values, strict=True)) == pytest.approx(expected, rel=1e-6)
    assert len(steps) == (2 if key.startswith("val/") else 8)


def test_values_are_right(run):
    _, logged, _ = run
    _, rates = logged.series("lr/decay")
    assert rates == pytest.approx([0.1 * WarmupCosine(0.2).factor(step, 24) for step in range(2, 24, 3)], rel=1e-6)
    (_, total), (_, task), (_, penalty) = map(logged.series, ("train/loss", "train/loss/task", "train/penalty/l2"))
    assert total == pytest.approx([a + b for a, b in zip(task, penalty, strict=True)], rel=1e-6)
    assert all(norm <= 0.5 + 1e-6 for norm in logged.series("grad/clipped_norm")[1])


def test_config_and_manifest(run):
    module, logged, folder = run
    assert logged.config["loss"]["class_path"] == "firstlight.losses.CrossEntropyLoss"
    assert logged.config["loss"]["init_args"]["label_smoothing"] == 0.1
    assert logged.config["optimizer"] == module.hparams["optimizer"]
    written = json.loads((folder / "manifest.json").read_text())
    assert logged.config["manifest"]["packages"]["torch"] == torch.__version__
    assert logged.config["manifest"]["seed"] == written["seed"] == "3"


def test_predictions_and_confusion_matrix(run):
    _, logged, _ = run
    media = {key for row in logged.history for key in row}
    assert {"val/predictions", "val/confusion_matrix"} <= media
    run_files = list(logged.path.parent.rglob("*"))
    pictures = [path for path in run_files if path.suffix == ".png" and "confusion_matrix" in path.name]
    assert pictures
    assert all(path.stat().st_size > 1000 for path in pictures)
    tables = [path for path in run_files if path.name.endswith(".table.json") and "predictions" in path.name]
    rows = json.loads(tables[0].read_text())
    assert len(rows["data"]) == 5
    assert {"prediction", "confidence", "target"} <= set(rows["columns"])
