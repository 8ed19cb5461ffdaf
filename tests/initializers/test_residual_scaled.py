"""residual_scaled_: the stream of a residual net does not grow with its depth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from firstlight.initializers import initialize_, lsuv_, residual_scaled_


class Branch(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x):
        return x + self.c_proj(torch.relu(self.fc(x)))


def test_gpt2():
    """std / sqrt(2 N): twelve blocks, two branches each."""
    layer = nn.TransformerEncoderLayer(64, 4, 256)
    net = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    report = residual_scaled_(net, std=0.02)
    assert len(report.rows) == 24
    for row in report.rows:
        assert row.target_std == pytest.approx(0.02 / math.sqrt(24))
        assert row.measured_std == pytest.approx(row.target_std, rel=0.05)
    assert {row.name.rpartition(".")[2] for row in report.rows} == {"out_proj", "linear2"}


def test_scales_what_is_there_once_for_tied_branches():
    net = nn.Sequential(Branch(32), Branch(32))
    net[1].c_proj.weight = net[0].c_proj.weight
    before = net[0].c_proj.weight.detach().clone(), net[0].fc.weight.detach().clone()
    report = residual_scaled_(net, num_branches=9)
    assert torch.allclose(net[0].c_proj.weight, before[0] / 3)
    assert torch.equal(net[0].fc.weight, before[1])
    assert report.rows[1].skipped == "tied: scaled already"


def test_names_do_not_match_by_accident():
    net = nn.ModuleDict({"two": nn.Linear(2, 2), "wo": nn.Linear(2, 2), "dew2": nn.Linear(2, 2)})
    assert [row.name for row in residual_scaled_(net).rows] == ["wo"]


def test_twenty_branches_after_lsuv():
    """Reference: every branch at unit variance, and the output has 20.9; scaled, at most 2."""
    torch.manual_seed(0)
    x = torch.randn(512, 128)
    net = nn.Sequential(*[Branch(128) for _ in range(20)])
    lsuv_(net, x)
    with torch.no_grad():
        grown = net(x).var().item()
        initial = [row.skipped for row in residual_scaled_(net).rows]
        scaled = net(x).var().item()
    assert initial == [None] * 20
    assert 15 < grown < 30
    assert 1.0 < scaled < 2.0


def test_parametrized_and_frozen():
    net = nn.Sequential(Branch(16), Branch(16), Branch(16))
    initialize_(net)
    nn.utils.parametrizations.weight_norm(net[0].c_proj)
    net[1].c_proj.requires_grad_(False)
    before = net[0].c_proj.weight.detach().clone()
    rows = residual_scaled_(net).rows
    assert [row.skipped for row in rows] == [None, "frozen", None]
    assert torch.allclose(net[0].c_proj.weight, before / math.sqrt(3), atol=1e-6)
