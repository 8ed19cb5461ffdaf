"""NaN in loss, gradient, weights and batch, at random steps: every run ends with good weights, or is refused."""

from __future__ import annotations

import random

import pytest
import torch
from recovery.test_non_finite_guard import Sound, faulty, quiet, trained, without_random

from firstlight.recovery import NonFiniteGuard
from helpers import same

pytestmark = [pytest.mark.faults, quiet]
TRIES = 5


@pytest.mark.parametrize("fault", ["loss", "gradient", "batch"])
def test_a_step_is_left_out(fault, tmp_path, fault_table):
    draw = random.Random(fault)
    for number in range(TRIES):
        at = draw.randrange(6)
        left, _, _ = trained(tmp_path / f"{number}", NonFiniteGuard(), module=faulty(fault, at=(at,)))
        expected, _, _ = trained(tmp_path / f"{number}-clean", module=Sound, without=(at,))
        assert same(without_random(left), without_random(expected))
        fault_table.add(f"NaN in the {fault}", "the run without that batch, bit for bit", 1)


def test_weights_are_put_back(tmp_path, fault_table):
    draw = random.Random(0)
    for number in range(TRIES):
        at = draw.randrange(6)
        guard = NonFiniteGuard("rollback", snapshot_every_n_steps=2)
        left, _, _ = trained(tmp_path / f"{number}", guard, module=faulty("weights", at=(at,)))
        assert guard.rollbacks == 1
        assert all(bool(torch.isfinite(value.float()).all()) for value in left.values())
        fault_table.add("NaN in the weights", "rolled back at most two steps", at % 2 + 1)
