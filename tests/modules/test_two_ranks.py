"""Under DDP with two gloo processes both ranks hold the same weights, and those of one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modules.generative_models import Batches
from modules.two_ranks import Losses, contrastive, flat, pairs

from firstlight.modules._linear_probe import LinearProbe
from helpers import fit

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "plugins")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "modules" / "two_ranks.py"), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=200, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["gan", "gan val", "contrastive", "losses", "probe", "augmented probe"])
def test_ranks_agree(ranks, key):
    assert ranks[0][key] == ranks[1][key]


@pytest.mark.slow
def test_both_parts_of_the_gan_were_trained(ranks):
    assert ranks[0]["gan moved"]
    assert ranks[0]["sharded gan"] == pytest.approx(ranks[0]["gan"], rel=1e-4, abs=1e-6), "FSDP2 trains what DDP does"
    assert ranks[0]["refused"].startswith("strategy must be 'ddp_find_unused_parameters_true'")


@pytest.mark.slow
def test_two_ranks_train_the_contrastive_module_as_one_process_with_the_whole_batch(ranks):
    """DistributedSampler deals samples out in turn, so that the first batches of both are the first 16 samples."""
    torch.manual_seed(1)
    module, losses = contrastive(probe_samples=0), Losses()
    data = pairs()
    # The order inside a batch is irrelevant, up to rounding.
    fit(module, losses, data=Batches(data[:16], data[16:]), max_epochs=2)
    assert losses.values == pytest.approx(ranks[0]["losses"], rel=1e-5)
    assert flat(module) == pytest.approx(ranks[0]["contrastive"], rel=1e-4, abs=1e-6)

    x, _, target = data.tensors
    chosen = [i * 32 // 24 for i in range(24)]
    with torch.no_grad():
        probe = LinearProbe.fit(module(x[chosen]), target[chosen])
        assert ranks[0]["probe"] == pytest.approx(float((probe(module(x)) == target).float().mean()))
