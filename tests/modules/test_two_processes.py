"""Under DDP, perplexity and error rate are those of one process, however unequal the ranks' shares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modules.two_processes import data, modules

from helpers import trainer

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "plugins")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "modules" / "two_processes.py"), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=180, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", modules())
def test_two_ranks_measure_what_one_does(run, name):
    _, ranks = run
    (alone,) = trainer().validate(modules()[name], data()[name], verbose=False)
    telling = {"language": "val/perplexity", "transcription": "val/char_error_rate"}[name]
    assert telling in alone
    for found in ranks:
        assert found[name] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", modules())
def test_after_training_they_agree_on_what_the_checkpoint_gives(run, name):
    folder, (first, second) = run
    assert first[f"{name} trained"] == second[f"{name} trained"]
    module = modules()[name]
    before = first[name]["val/loss"]
    assert first[f"{name} trained"]["val/loss"] < before
    module.load_state_dict(torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"])
    (alone,) = trainer().validate(module, data()[name], verbose=False)
    assert first[f"{name} trained"] == pytest.approx(alone, rel=1e-5)


def test_a_sharded_head_gets_the_mean_gradient(run):
    """The loss takes the head's weight, not the head: FSDP2 would gather it for a forward that does not come."""
    _, ranks = run
    assert max(found["sharded gap"] for found in ranks) < 1e-5


def test_a_sharded_discriminator_gets_the_mean_gradient_through_its_penalties(run):
    """FSDP2 frees the weights after a backward pass, and the gradient of a gradient needs them once more."""
    _, ranks = run
    assert max(found["gap of penalties"] for found in ranks) < 1e-5


def test_one_rank_writes_the_samples(run):
    folder, _ = run
    assert (folder / "samples.txt").read_text().count("--- step") == 2  # after validate and after fit
