from __future__ import annotations

import pytest
from torch import Tensor, nn

from firstlight.preflight import assert_preflight
from helpers import Plain, loader, trainer


class Twice(Plain):
    def training_step(self, batch, batch_idx) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).softmax(1), batch[1])


def run():
    return trainer(max_epochs=5)


@pytest.mark.slow
def test_a_set_up_that_learns_passes():
    assert_preflight(Plain(), loader(), trainer=run())


@pytest.mark.slow
def test_one_that_cannot_fails_with_its_diagnosis():
    with pytest.raises(AssertionError) as failed:
        assert_preflight(Twice(), loader(), trainer=run(), budget_seconds=10)
    said = str(failed.value)
    assert "ERROR: cannot learn as written: FL302 softmax_twice" in said
    assert "remove the softmax" in said
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.slow
def test_what_is_ignored_does_not_fail_and_must_be_a_code():
    assert_preflight(Twice(), loader(), trainer=run(), budget_seconds=10, ignore=["FL302"])
    with pytest.raises(ValueError, match="one such as FL204; got 'softmax'"):
        assert_preflight(Plain(), loader(), trainer=run(), ignore=["softmax"])
