"""Under DDP, contrastive losses are those of one process that has the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from losses.two_ranks import cases, data, second_order, step

from firstlight.losses import nt_xent_loss

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "plugins"), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("two_ranks.py")
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", list(cases(gather=False)))
def test_loss_and_gradient_are_those_of_one_process(ranks, name):
    loss, gradient = step(name, cases(gather=False)[name], *data())
    expected = torch.tensor(gradient, dtype=torch.float64)
    for found in ranks:
        value, ours = found[name]
        ours = torch.tensor(ours, dtype=torch.float64)
        assert value == pytest.approx(loss, rel=1e-12)
        assert float(ours.norm() / expected.norm()) == pytest.approx(1.0, abs=1e-6)
        assert 1 - float(torch.cosine_similarity(ours, expected, dim=0)) < 1e-9


def test_without_gather_each_rank_has_its_own_loss(ranks):
    first, second, _ = data()
    for rank, found in enumerate(ranks):
        half = slice(8 * rank, 8 * rank + 8)
        assert found["local"] == pytest.approx(float(nt_xent_loss(first[half], second[half])), rel=1e-12)
    assert ranks[0]["local"] != ranks[1]["local"]


def test_it_can_be_differentiated_twice_across_ranks(ranks):
    """Each rank's gradient is twice that of the mean loss, and each rank penalizes its own half."""
    whole = torch.tensor(second_order(slice(None), gather=False))
    halves = torch.tensor([found["second order"] for found in ranks]).flatten()
    torch.testing.assert_close(halves, 4 * whole)
