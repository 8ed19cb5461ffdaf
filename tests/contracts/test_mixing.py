"""The laws of mixings, over every row of the table."""

from __future__ import annotations

import pytest
import torch
from contracts.mixing_cases import BAD, ROWS

import firstlight.mixing as room
from firstlight._spec import build, spec_of
from firstlight.losses import CrossEntropyLoss

MIXINGS = pytest.mark.parametrize("name", ROWS)
PER = pytest.mark.parametrize("per_sample", [False, True])


def batch(size: int = 5, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of one value each, its index, so that a mixture shows where its pixels come from."""
    return torch.arange(size).to(dtype).reshape(-1, 1, 1, 1).expand(size, 3, 8, 9).clone(), torch.arange(size)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_public_name_has_a_row():
    assert set(ROWS) == set(room.__all__)


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@PER
@MIXINGS
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_targets_are_the_shares_of_the_pixels(name, per_sample, size):
    """The mean over an image of indices is the expectation of the index under its target, for odd batches too."""
    for seed in range(20):
        inputs, targets = batch(size, torch.float64)
        mixed, soft = ROWS[name].build(1.0, per_sample=per_sample)(inputs, targets, size, seeded(seed))
        assert mixed.shape == inputs.shape
        assert soft.shape == (size, size)
        torch.testing.assert_close(soft.sum(1), torch.ones(size, dtype=torch.float64), rtol=0, atol=1e-12)
        expected = soft @ torch.arange(size, dtype=torch.float64)
        # exact up to the rounding of a share drawn in float32
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, rtol=0, atol=1e-6)


@PER
@MIXINGS
def test_inputs_and_targets_are_not_changed(name, per_sample):
    inputs, targets = batch()
    soft = torch.nn.functional.one_hot(targets, 5).float()
    before = inputs.clone(), targets.clone(), soft.clone()
    ROWS[name].build(1.0, per_sample=per_sample)(inputs, targets, 5, seeded())
    ROWS[name].build(1.0, per_sample=per_sample)(inputs, soft, 5, seeded())
    assert all(torch.equal(a, b) for a, b in zip((inputs, targets, soft), before, strict=True))


@MIXINGS
def test_a_generator_decides_alone_and_is_the_only_one_used(name):
    inputs, targets = batch()
    before = torch.random.get_rng_state()
    first, second = (ROWS[name].build(1.0)(inputs, targets, 5, seeded(3)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    other = ROWS[name].build(1.0)(inputs, targets, 5, seeded(4))
    assert not torch.equal(first[1], other[1])


@MIXINGS
def test_without_a_generator_torch_s_own_decides(name):
    inputs, targets = batch()
    torch.manual_seed(3)
    first = ROWS[name].build(1.0)(inputs, targets, 5)
    torch.manual_seed(3)
    assert torch.equal(first[0], ROWS[name].build(1.0)(inputs, targets, 5)[0])


@MIXINGS
def test_alpha_zero_changes_nothing_and_draws_nothing(name):
    inputs, targets = batch()
    before = torch.random.get_rng_state()
    mixed, soft = ROWS[name].build(0.0)(inputs, targets, 5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(mixed, inputs)
    assert torch.equal(soft, torch.eye(5))


@MIXINGS
def test_probabilities_are_mixed_as_indices_are(name):
    inputs, targets = batch()
    _, by_index = ROWS[name].build(1.0)(inputs, targets, 5, seeded())
    _, by_probability = ROWS[name].build(1.0)(inputs, torch.eye(5), 5, seeded())
    assert torch.equal(by_index, by_probability)


@MIXINGS
def test_images_of_bytes(name):
    inputs, targets = batch(dtype=torch.uint8)
    expected, soft = ROWS[name].build(1.0)(inputs.float(), targets, 5, seeded())
    mixed, soft_of_bytes = ROWS[name].build(1.0)(inputs, targets, 5, seeded())
    assert mixed.dtype == ROWS[name].dtype_of_bytes
    assert ROWS[name].build(0.0)(inputs, targets, 5)[0].dtype == ROWS[name].dtype_of_bytes
    assert torch.equal(mixed.float(), expected)
    assert torch.equal(soft, soft_of_bytes)


@MIXINGS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_keep_their_dtype_and_full_targets(name, dtype):
    inputs, targets = batch(dtype=dtype)
    mixed, soft = ROWS[name].build(1.0)(inputs, targets, 5, seeded())
    assert mixed.dtype == dtype
    assert soft.dtype == torch.float32
    expected = ROWS[name].build(1.0)(inputs.float(), targets, 5, seeded())[0]
    torch.testing.assert_close(mixed.float(), expected, rtol=1e-2, atol=1e-2)


@PER
@MIXINGS
def test_one_share_a_batch_or_one_a_sample(name, per_sample):
    inputs, targets = batch(8)
    shares = set()
    for seed in range(5):
        _, soft = ROWS[name].build(1.0, per_sample=per_sample)(inputs, targets, 8, seeded(seed))
        mixed = soft.diagonal()[soft.diagonal() < 1]  # a sample may be its own partner
        shares.add(len(mixed.unique()))
    assert (max(shares) > 1) == per_sample


@PER
@MIXINGS
def test_a_mixing_comes_back_from_plain_values(name, per_sample):
    spec = spec_of(ROWS[name].build(0.4, per_sample=per_sample))
    assert spec == {
        "class_path": f"firstlight.mixing.{name}",
        "init_args": {"alpha": 0.4, "per_sample": per_sample},
    }
    assert repr(build(spec, base=object, name="mixing")) == f"{name}(alpha=0.4, per_sample={per_sample})"


@MIXINGS
def test_an_empty_batch(name):
    mixed, soft = ROWS[name].build(1.0)(torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.long), 5)
    assert mixed.shape == (0, 3, 4, 4)
    assert soft.shape == (0, 5)


@MIXINGS
def test_cross_entropy_is_that_of_both_targets_by_their_shares(name):
    """``CE(soft) = share CE(y) + (1 - share) CE(y of the partner)``, in float64 to 1e-15."""
    inputs, targets = batch(6, torch.float64)
    _, soft = ROWS[name].build(1.0)(inputs, targets, 6, seeded(1))
    logits = torch.randn(6, 6, dtype=torch.float64)
    partner = torch.where(soft == soft.diagonal().diag(), 0, soft).argmax(1)
    partner = torch.where((soft > 0).sum(1) == 1, targets, partner)
    share = soft.gather(1, targets.unsqueeze(1)).squeeze(1)
    own, other = (torch.nn.functional.cross_entropy(logits, y, reduction="none") for y in (targets, partner))
    expected = torch.where(partner == targets, own, share * own + (1 - share) * other)
    torch.testing.assert_close(CrossEntropyLoss(reduction="none")(logits, soft), expected, rtol=4e-16, atol=1e-15)
    torch.testing.assert_close(CrossEntropyLoss()(logits, soft), expected.mean(), rtol=4e-16, atol=1e-15)


@MIXINGS
def test_class_weights_keep_one_denominator(name):
    """The weighted mean divides by the weights of the targets that count: here of both, by their shares.

    torch divides soft targets by N, which scales the loss by the mean weight as soon as a batch is mixed: 6.005 for
    2.402, at the mean weight 2.5 of this batch.
    """
    inputs, targets = batch(4, torch.float64)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    logits = torch.randn(4, 4, dtype=torch.float64)
    _, soft = ROWS[name].build(1.0)(inputs, targets, 4, seeded(2))
    assert (soft.max(1).values < 1).any(), "something is mixed"
    each = -(soft * weight * logits.log_softmax(1)).sum(1)
    expected = each.sum() / (soft * weight).sum()
    ours = CrossEntropyLoss(weight)(logits, soft)
    torch.testing.assert_close(ours, expected, rtol=1e-14, atol=0)
    torchs = torch.nn.functional.cross_entropy(logits, soft, weight)
    assert torchs.item() == pytest.approx(ours.item() * float((soft * weight).sum()) / 4, rel=1e-12)
    assert name != "MixUp" or torchs.item() / ours.item() == pytest.approx(6.005 / 2.402, rel=1e-12)
    # Unmixed it is the loss on indices, so switching the mixing on changes no scale.
    _, hard = ROWS[name].build(0.0)(inputs, targets, 4)
    torch.testing.assert_close(CrossEntropyLoss(weight)(logits, hard), CrossEntropyLoss(weight)(logits, targets))
