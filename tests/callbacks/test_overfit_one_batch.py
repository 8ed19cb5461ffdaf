"""OverfitOneBatch: passes what can learn, names what cannot."""

from __future__ import annotations

import functools
import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import LearningRateScheduler, OverfitOneBatch
from firstlight.losses import CrossEntropyLoss, NTXentLoss
from firstlight.regularizers import L2Penalty
from firstlight.schedules import WarmupCosine
from helpers import Plain, classes_data, fit, loader, network, supervised


def verdict(module, data=None, **kwargs):
    probe = OverfitOneBatch(on_fail="warn", **kwargs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "OverfitOneBatch FAILED")
        try:
            fit(module, probe, data=data, max_steps=1, max_epochs=-1)
        except (IndexError, ValueError, RuntimeError):  # the real step fails too, after the verdict
            assert probe.result is not None
    return probe.result


class Detached(Plain):
    def training_step(self, batch, batch_idx):
        hidden = self.net[:4](batch[0]).detach()
        return F.cross_entropy(self.net[4](hidden), batch[1])


class WithSoftmax(Plain):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]).softmax(1), batch[1])


class FromNumbers(Plain):
    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            return super().training_step(batch, batch_idx)


class WrongSign(Plain):
    def training_step(self, batch, batch_idx):
        return -F.mse_loss(self.net(batch[0]), F.one_hot(batch[1], 4).float())


class Regression(Plain):
    def __init__(self, loss, **kwargs):
        super().__init__(**kwargs)
        self.loss = loss

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), F.one_hot(batch[1], 4).float())


@pytest.mark.parametrize(
    "make",
    [
        Plain,
        supervised,
        lambda: supervised(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        lambda: supervised(penalties=[L2Penalty(0.1)]),
        lambda: supervised(loss=CrossEntropyLoss([1.0, 2.0, 3.0, 4.0], label_smoothing=0.2)),
        lambda: supervised(optimizer=functools.partial(torch.optim.AdamW, lr=3e-3)),
        lambda: supervised(model=network(dropout=0.9)),
        lambda: Regression(nn.MSELoss()),
        lambda: Regression(nn.BCEWithLogitsLoss(), lr=0.5),
        lambda: Regression(nn.SmoothL1Loss()),
    ],
    ids=["torch", "ours", "torch smoothing", "penalty", "weights", "AdamW", "dropout", "MSE", "BCE", "SmoothL1"],
)
def test_passes_what_can_learn(make):
    result = verdict(make())
    assert result.passed, str(result)
    assert result.cause is None
    assert result.final < result.initial


def test_slow_is_no_fault():
    result = verdict(Regression(nn.MSELoss(), lr=0.002), max_steps=60)
    assert result.passed, str(result)
    assert re.match(r"slowly; the optimizer: SGD at learning rate 0.002 does not get there, Adam at", result.cause)
    assert verdict(Regression(nn.MSELoss(), lr=1e-5), max_steps=60).passed is False


def test_label_smoothing_does_not_fool_it():
    result = verdict(supervised(loss=CrossEntropyLoss(label_smoothing=0.1)))
    on, off = 0.925, 0.025
    assert result.floor == pytest.approx(-(on * math.log(on) + 3 * off * math.log(off)), rel=1e-5)
    assert result.passed
    assert result.final > 0.9 * result.floor
    strict = verdict(supervised(loss=CrossEntropyLoss(label_smoothing=0.9)))
    assert strict.passed, str(strict)  # nearly all of the loss is its floor


def test_soft_targets_have_their_own_floor():
    data = classes_data(16)
    soft = TensorDataset(data.tensors[0], F.one_hot(data.tensors[1], 4) * 0.6 + 0.1)
    result = verdict(supervised(loss=CrossEntropyLoss()), DataLoader(soft, batch_size=16))
    assert result.floor == pytest.approx(-(0.7 * math.log(0.7) + 3 * 0.1 * math.log(0.1)), rel=1e-4)
    assert result.passed


class Views(Plain):
    """Contrastive: two noisy views of each sample. Its loss cannot reach zero, and how low it can is not known."""

    def training_step(self, batch, batch_idx):
        first, second = (self.net(batch[0] + 0.1 * torch.randn_like(batch[0])) for _ in range(2))
        return NTXentLoss(temperature=0.5)(first, second)


class OneView(Views):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0], batch[1]), batch_idx).detach() + 0.0 * self.net(batch[0]).sum()


def test_a_loss_without_a_known_floor_is_judged_by_its_fall():
    result = verdict(Views(network(dropout=0.0)))
    assert result.passed, str(result)
    assert result.floor is None
    assert verdict(OneView(network(dropout=0.0))).passed is False


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: Plain(lr=0.0), "the learning rate is 0"),
        (lambda: supervised(lr=0.0), "the learning rate is 0"),
        (Detached, r"no gradient reaches 4 trainable parameter\(s\) \(net.0.weight"),
        (WithSoftmax, "cross-entropy gets probabilities, not logits"),
        (lambda: supervised(model=nn.Sequential(network(), nn.Softmax(1))), "gets probabilities, not logits"),
        (FromNumbers, "the loss has no gradient"),
        (lambda: Plain(lr=1e-7), "the optimizer: SGD at learning rate 1e-07 does not get there, Adam at 0.001 brings"),
        (WrongSign, "look at the sign of the loss"),
        (
            lambda: supervised(model=nn.Sequential(network(), nn.Linear(4, 3))),
            "labels go from 0 to 3, .* has 3 outputs",
        ),
    ],
    ids=["lr", "lr ours", "detached", "softmax", "softmax ours", "no_grad", "tiny lr", "sign", "labels"],
)
def test_names_the_cause(make, cause):
    result = verdict(make())
    assert result.passed is False, str(result)
    assert re.search(cause, result.cause), result.cause


def test_labels_out_of_range_are_named_before_the_loss_is_called():
    data = classes_data(16)
    shifted = DataLoader(TensorDataset(data.tensors[0], data.tensors[1] + 1), batch_size=16)
    assert "labels go from 1 to 4, but the model has 4 outputs" in verdict(Plain(), shifted).cause


@pytest.mark.parametrize("make", [Plain, supervised])
def test_labels_out_of_range_are_named_before_the_sanity_check_meets_them(make):
    data = classes_data(16)
    shifted = DataLoader(TensorDataset(data.tensors[0], data.tensors[1] + 1), batch_size=16)
    with pytest.raises(
        RuntimeError, match=r"OverfitOneBatch FAILED; labels go from 1 to 4, .* \(in the validation data\)"
    ):
        fit(make(), OverfitOneBatch(), data=shifted, val=shifted, num_sanity_val_steps=2)


def test_ignored_labels_are_in_range():
    data = classes_data(16)
    data.tensors[1][::4] = -100
    assert verdict(Plain(), DataLoader(data, batch_size=16)).passed


def test_plateau_of_softmax_is_the_known_one():
    """ln(e + C - 1) - 1: what probabilities as logits leave over."""
    result = verdict(WithSoftmax())
    assert result.final == pytest.approx(math.log(math.e + 3) - 1, abs=0.05)


def test_contradicting_labels_fail():
    inputs = torch.ones(16, 8)
    result = verdict(Plain(network()), DataLoader(TensorDataset(inputs, torch.arange(16) % 4), batch_size=16))
    assert result.passed is False
    assert "labels" in result.cause


def test_raises_by_default_with_one_line():
    with pytest.raises(RuntimeError, match=r"OverfitOneBatch FAILED: loss .*; the learning rate is 0") as caught:
        fit(Plain(lr=0.0), OverfitOneBatch())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("manual", "manual optimization"), ("several", "2 optimizers"), ("single", "more than one sample")],
)
def test_stands_aside_with_a_reason(change, reason):
    class Changed(Plain):
        def __init__(self):
            super().__init__(network() if change == "single" else nn.Linear(8, 4))
            self.automatic_optimization = change != "manual" and change != "several"

        def training_step(self, batch, batch_idx):
            if not self.automatic_optimization:
                return None
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer, torch.optim.SGD([self.net.bias], lr=0.1)] if change == "several" else optimizer

    probe = OverfitOneBatch()
    size = 1 if change == "single" else 8
    try:
        fit(Changed(), probe, data=loader(batch_size=size), max_steps=1)
    except ValueError:
        assert change == "single", "batch norm cannot train on one sample"
    assert probe.result.passed is None
    expected = "manual optimization" if change == "several" else reason
    assert expected in probe.result.cause


def test_skips_a_resumed_run(tmp_path):
    fit(Plain(lr=0.1), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    probe = OverfitOneBatch()
    fit(Plain(lr=0.0), probe, ckpt=tmp_path / "a.ckpt")
    assert str(probe.result) == "OverfitOneBatch skipped: the run was resumed"


def test_warm_up_dependent_rates_do_not_alarm():
    """The rate is judged with a warm-up of the trial's own, not at its raw peak from the first step."""
    probe = OverfitOneBatch()
    module = supervised(lr=0.3)
    fit(module, LearningRateScheduler(WarmupCosine(0.5)), probe)
    assert probe.result.passed


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="max_steps must be 20 or more"):
        OverfitOneBatch(max_steps=1)
    with pytest.raises(ValueError, match="on_fail must be 'raise' or 'warn'"):
        OverfitOneBatch(on_fail="ignore")
