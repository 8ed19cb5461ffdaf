"""NTXentLoss: known values, all digits near 0, chunks that change nothing, and memory that stays small."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.losses import NTXentLoss, nt_xent_loss

HALF = (torch.float16, torch.bfloat16)


def plain(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Return the loss as the paper writes it."""
    views = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = views @ views.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(views), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(views)).roll(len(z1)))


@pytest.mark.parametrize("num", [1, 2, 8, 100])
def test_equal_embeddings(num):
    same = torch.ones(num, 4)
    assert nt_xent_loss(same, same).item() == pytest.approx(math.log(2 * num - 1), rel=1e-6, abs=1e-7)


def test_a_single_pair_costs_nothing():
    pair = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    loss = nt_xent_loss(*pair)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, pair))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_orthonormal_pairs_in_float32_have_all_digits(dtype):
    eye = torch.eye(8, dtype=dtype)
    # the cross-entropy of float32 gives 6.354219e-4
    assert nt_xent_loss(eye, eye, temperature=0.1).item() == pytest.approx(math.log1p(14 * math.exp(-10)), rel=1e-6)
    assert math.log1p(14 * math.exp(-10)) == pytest.approx(6.353971e-4, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_antipodal_pairs_are_not_saturated(dtype):
    z1 = torch.eye(4, 8, dtype=dtype, requires_grad=True)
    loss = nt_xent_loss(z1, -torch.eye(4, 8, dtype=dtype), temperature=0.01)
    assert loss.item() == pytest.approx(101.7918, abs=1e-4)
    assert torch.isfinite(torch.autograd.grad(loss, z1)[0]).all()


EMBEDDINGS = torch.tensor([[-1.954, 1.078], [0.238, -0.5703], [1.8745, -0.0195], [-0.6719, -1.921]])


@pytest.mark.parametrize(("zero_first", "expected"), [(False, 14.0103200), (True, 9.2889269)])
def test_optax_golden_values(zero_first, expected):
    """optax's tests of ntxent with labels 0, 0, 1, 1; with and without a first embedding of zeros."""
    embeddings = EMBEDDINGS.clone()
    if zero_first:
        embeddings[0] = 0
    loss = nt_xent_loss(embeddings[::2], embeddings[1::2], temperature=0.07)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_zero_embeddings_have_no_gradient_and_spoil_none(dtype):
    z1, z2 = torch.randn(4, 3, dtype=dtype), torch.randn(4, 3, dtype=dtype)
    z1[0] = 0
    z1.requires_grad_()
    gradient = torch.autograd.grad(nt_xent_loss(z1, z2), z1)[0]
    assert (gradient[0] == 0).all()
    assert torch.isfinite(gradient).all()
    assert (gradient[1:] != 0).any(1).all()


@pytest.mark.parametrize("scale", [1e-6, 1e30])
def test_lengths_are_irrelevant(scale):
    z1, z2 = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(nt_xent_loss(scale * z1, z2), nt_xent_loss(z1, z2))


@pytest.mark.parametrize("chunk", [None, 1, 5, 64, 1000])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_equals_the_plain_formula_in_any_chunks(chunk, temperature):
    z1, z2 = (torch.randn(32, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours = nt_xent_loss(z1, z2, temperature=temperature, chunk_size=chunk)
    theirs = plain(z1, z2, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, (z1, z2)), torch.autograd.grad(3 * theirs, (z1, z2)))


def test_backward_twice():
    z1, z2 = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    loss = nt_xent_loss(z1, z2)
    first = torch.autograd.grad(loss, z1, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, z1), first, rtol=0, atol=0)


def test_autocast_changes_nothing():
    z1, z2 = torch.randn(8, 16), torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert nt_xent_loss(z1, z2) == nt_xent_loss(z1, z2)
        inside = NTXentLoss()(z1, z2)
    assert inside == NTXentLoss()(z1, z2)


MEMORY = """
import resource, torch
from firstlight.losses import nt_xent_loss
torch.set_num_threads(1)
z1, z2 = (torch.randn(4096, 64, requires_grad=True) for _ in range(2))
nt_xent_loss(z1[:64], z2[:64]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nt_xent_loss(z1, z2).backward()
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_memory_is_the_chunks():
    """All similarities of 8192 views are 256 MiB, and plain cross-entropy holds several of that size."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    (used,) = re.findall(r"MiB (\d+)", done.stdout)
    assert int(used) < 128


def test_nan_is_not_taken_for_zero():
    z1, z2 = torch.randn(4, 3), torch.randn(4, 3)
    for bad in (math.nan, math.inf):
        spoiled = z1.clone()
        spoiled[0, 0] = bad
        assert nt_xent_loss(spoiled, z2).isnan()


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("num", [1, 2, 5])
def test_the_minimum_is_reached_by_a_simplex_and_not_beaten(num, temperature):
    loss = NTXentLoss(temperature=temperature)
    simplex = torch.eye(num, dtype=torch.float64) - 1 / num
    floor = loss.minimum(simplex, simplex)
    torch.testing.assert_close(loss(simplex, simplex), floor)
    z1, z2 = (simplex.clone().requires_grad_() for _ in range(2))
    optimizer = torch.optim.SGD([z1, z2], lr=0.01)
    for _ in range(5):
        torch.nn.init.normal_(z1), torch.nn.init.normal_(z2)
        for _ in range(20):
            optimizer.zero_grad()
            value = loss(z1, z2)
            assert value >= floor - 1e-12
            value.backward()
            optimizer.step()
