"""Torch's own losses under our roof: the values that our documentation gives for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight import losses

P = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
Q = torch.tensor([[0.4, 0.6], [0.5, 0.5]])


@pytest.mark.parametrize("name", ["KLDivLoss", "SmoothL1Loss", "GaussianNLLLoss", "NLLLoss"])
def test_they_are_torchs_own(name):
    assert getattr(losses, name) is getattr(nn, name)


def test_kl_div_has_its_arguments_the_other_way_round():
    """KLDivLoss()(log q, p) is KL(P || Q), and only "batchmean" divides by the batch."""
    assert losses.KLDivLoss(reduction="batchmean")(Q.log(), P).item() == pytest.approx(0.194238, abs=1e-6)
    assert losses.KLDivLoss(reduction="batchmean")(P.log(), Q).item() == pytest.approx(0.265481, abs=1e-6)
    assert losses.KLDivLoss(reduction="sum")(Q.log(), P).item() / 4 == pytest.approx(0.097119, abs=1e-6)
