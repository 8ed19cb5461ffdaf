"""Scripts that know only Lightning, run as their authors would: bare, with our callbacks, and with zero code."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from firstlight.tracking import read_metrics

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = {
    "manual": ["manual.py"],
    "command_line": ["command_line.py", "fit", "--config", str(HERE / "command_line.yaml")],
    "of_pytorch_lightning": ["of_pytorch_lightning.py"],
}
WITH_CALLBACKS = {
    "manual": ["--with-firstlight"],
    "command_line": ["--config", str(HERE / "command_line_callbacks.yaml")],
}
LOG_EVERY = {"manual": 3, "command_line": 4, "of_pytorch_lightning": 2}
HEALTH = ("firstlight-health.json", "firstlight-health.txt")

pytestmark = pytest.mark.slow


class Ran(NamedTuple):
    folder: Path
    errors: str  # what it wrote on standard error
    said: str  # and on standard output

    @property
    def truth(self) -> dict[str, Any]:
        return json.loads((self.folder / "truth.json").read_text())

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / "end.pt", weights_only=True)

    @property
    def health(self) -> dict[str, Any]:
        return json.loads((self.folder / HEALTH[0]).read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    @cache
    def run(script: str, asked: str | None = None, *more: str) -> Ran:
        folder = tmp_path_factory.mktemp(script)
        path = os.pathsep.join([str(HERE.parent), str(ROOT / "plugins")])
        environment = {k: v for k, v in os.environ.items() if k != "FIRSTLIGHT"}
        environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | ({} if asked is None else {"FIRSTLIGHT": asked})
        file, *arguments = SCRIPTS[script]
        command = [sys.executable, str(HERE / file), *arguments, *more]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=240, check=False, cwd=folder
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return Ran(folder, done.stderr, done.stdout)

    return run


def test_both_packages_are_told_of_us():
    for package in ("lightning.pytorch", "pytorch_lightning"):
        ours = entry_points(group=f"{package}.callbacks_factory", name="firstlight")
        assert len(ours) == 1, "the installed metadata is older than pyproject.toml: install the package again"


def same_training(one: Ran, other: Ran) -> None:
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)
    for key in ("losses", "batches", "random", "said_through", "steps"):
        assert repr(one.truth[key]) == repr(other.truth[key]), key  # NaN is itself in text alone


@pytest.mark.parametrize("script", SCRIPTS)
def test_zero_code_changes_nothing(script, run):
    same_training(run(script), run(script, "monitor"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_preflight_by_one_word_changes_nothing(script, run):
    asked = run(script, "preflight")
    same_training(run(script), asked)
    if script == "of_pytorch_lightning":
        assert "firstlight leaves out preflight: it takes what is made of lightning.pytorch" in asked.errors
    else:
        verdicts = re.findall(r"^(?:PASSED|WARNING|ERROR): ", asked.said, re.MULTILINE)
        assert len(verdicts) == 1, "copies have Trainers too, which ask nothing"


@pytest.mark.parametrize("script", WITH_CALLBACKS)
def test_our_callbacks_fit_in_and_change_nothing_when_told_to_act_on_nothing(script, run):
    with_ours = run(script, None, *WITH_CALLBACKS[script])
    same_training(run(script), with_ours)
    assert "grad/norm/total" in read_metrics(with_ours.folder)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_summary_is_what_the_script_wrote_down_itself(script, run):
    ran = run(script, "monitor")
    health, truth = ran.health, ran.truth
    steps = truth["steps"]
    assert health["schema"] == "firstlight-health/1"
    assert health["run"]["ended"] == "finished"
    assert (health["run"]["steps"], health["run"]["batches"]) == (len(steps), len(truth["losses"]))
    assert [o["name"] for o in health["optimizers"]] == list(dict.fromkeys(s["optimizer"] for s in steps))
    for optimizer in health["optimizers"]:
        own = [step for step in steps if step["optimizer"] == optimizer["name"]]
        norms = [step["norm"] for step in own if math.isfinite(step["norm"])]
        assert optimizer["steps"] == len(own)
        assert optimizer["nonfinite_steps"] == len(own) - len(norms)
        expected = {"median": np.median(norms), "p90": np.quantile(norms, 0.9), "max": max(norms)}
        assert optimizer["gradient_norm"] == pytest.approx(expected, rel=1e-6)
        rates = [rate for step in own for rate in step["rates"]]
        assert optimizer["learning_rate"] == {"min": min(rates), "max": max(rates)}
        rate = None if script == "manual" else sum(norm > 0.5 for norm in norms) / len(own)
        assert optimizer["clip_rate"] == pytest.approx(rate)
    if script != "manual":
        assert 0 < health["optimizers"][0]["clip_rate"] < 1, "the data must show both cases"


@pytest.mark.parametrize("script", SCRIPTS)
def test_losses_and_updates_are_what_the_script_wrote_down_itself(script, run):
    ran = run(script, "monitor")
    truth, health = ran.truth, ran.health
    losses = truth["losses"]
    best = {key: health["loss"][key] for key in ("first", "last", "best")}
    assert best == pytest.approx({"first": losses[0], "last": losses[-1], "best": min(losses)}, rel=1e-6)
    by_batch: dict[int, list[dict[str, Any]]] = {}
    for step in truth["steps"]:
        by_batch.setdefault(step["batch"], []).append(step)
    logged = list(by_batch.values())[LOG_EVERY[script] - 1 :: LOG_EVERY[script]]
    blocks: dict[str, list[float]] = {}
    for step in [step for batch in logged for step in batch]:
        for block, ratio in step["ratios"].items():
            if math.isfinite(ratio):
                blocks.setdefault(block, []).append(ratio)
    assert health["update_ratio"].keys() == blocks.keys()
    for block, ratios in blocks.items():
        assert health["update_ratio"][block]["readings"] == len(ratios)
        assert health["update_ratio"][block]["median"] == pytest.approx(np.median(ratios), rel=1e-4)


def test_the_culprit_is_named(run):
    ran = run("of_pytorch_lightning", "monitor")
    (step,) = [step for step in ran.truth["steps"] if step["nonfinite"]]
    first = ran.health["first_nonfinite"]
    assert [first["parameter"]] == step["nonfinite"] == ["net.0.bias"]
    assert first["step"] == ran.truth["steps"].index(step) == 7
    assert first["epoch"] * 10 + first["batch"] == step["batch"]
    assert first["loss"] == pytest.approx(ran.truth["losses"][step["batch"]], rel=1e-6)
    assert (first["nonfinite_gradients"], first["gradients"]) == (1, 4)
    (sentence,) = [text for text in ran.health["stands_out"] if "not finite" in text]
    assert all(word in sentence for word in ("step 7", "net.0.bias", f"{first['loss']:.4g}"))
    assert sentence in ran.errors


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_text_is_short_and_on_the_console(script, run):
    ran = run(script, "monitor")
    text = (ran.folder / HEALTH[1]).read_text()
    assert text.strip() in ran.errors
    assert 4 <= len(text.splitlines()) <= 15


@pytest.mark.parametrize("script", ["manual", "command_line"])
def test_gradient_norms_go_through_the_logger_of_the_script(script, run):
    ran = run(script, "monitor")
    _, norms = read_metrics(ran.folder)["grad/norm/total"]
    stepped: dict[int, list[float]] = {}
    for step in ran.truth["steps"]:
        stepped.setdefault(step["batch"], []).append(step["norm"])
    expected = [math.hypot(*norms) for norms in stepped.values()][LOG_EVERY[script] - 1 :: LOG_EVERY[script]]
    assert norms == pytest.approx(expected, rel=1e-6)
    assert "grad/norm/total" not in read_metrics(run(script).folder)


@pytest.mark.parametrize("script", SCRIPTS)
def test_unasked_nothing_is_written_and_nothing_imported(script, run):
    ran = run(script)
    ours = [name for name in ran.truth["modules"] if name.startswith("firstlight")]
    assert ours == ["firstlight", "firstlight._autoload"]
    other = "lightning.pytorch" if script == "of_pytorch_lightning" else "pytorch_lightning"
    assert other not in ran.truth["modules"]
    assert not list(ran.folder.rglob("firstlight*"))
    assert "firstlight" not in ran.errors.replace("firstlight._autoload", "").replace(str(ROOT), "")


def test_garbage_is_one_line_and_nothing_else(run):
    garbage = "\x1b[31m" + "x" * 5000 + ",\udcff,9"
    ran = run("of_pytorch_lightning", garbage)
    same_training(run("of_pytorch_lightning"), ran)
    assert [name for name in ran.truth["modules"] if name.startswith("firstlight")] == [
        "firstlight",
        "firstlight._autoload",
    ]
    told = [line for line in ran.errors.splitlines() if "FIRSTLIGHT" in line]
    assert len(told) == 1
    assert "known: monitor" in told[0]
    assert len(told[0]) < 500
    assert "\x1b[31m" not in told[0]


def test_two_processes(run):
    ran = run("of_pytorch_lightning", "monitor", "--devices=2")
    assert ran.errors.count("firstlight: ") == 1
    health, steps = ran.health, ran.truth["steps"]
    assert (health["run"]["processes"], health["run"]["steps"]) == (2, len(steps))
    norms = [step["norm"] for step in steps if math.isfinite(step["norm"])]
    assert health["optimizers"][0]["gradient_norm"]["median"] == pytest.approx(np.median(norms), rel=1e-6)
    assert health["first_nonfinite"]["parameter"] == "net.0.bias"
    same_training(run("of_pytorch_lightning", None, "--devices=2"), ran)
