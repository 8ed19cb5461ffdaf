"""batch_scaling: the rate follows the items per step by the rule that was asked for, and never unasked."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import LearningRateScheduler
from firstlight.schedules import Constant
from helpers import Plain, Rates, fit, loader


def rates_of(scheduler: LearningRateScheduler, *others, **kwargs) -> list[float]:
    torch.manual_seed(1)
    rates = Rates()
    fit(Plain(nn.Linear(8, 4), lr=0.1), scheduler, rates, *others, **kwargs)
    return [rate for (rate,) in rates.seen]


@pytest.mark.parametrize(
    ("rule", "batch", "accumulate", "reference", "times"),
    [
        ("linear", 8, 1, 8, 1.0),
        ("linear", 8, 3, 8, 3.0),
        ("linear", 8, 1, 32, 0.25),
        ("sqrt", 16, 2, 8, 2.0),
        ("sqrt", 8, 1, 32, 0.5),
    ],
)
def test_the_rate_is_the_rule_s(rule, batch, accumulate, reference, times):
    scheduler = LearningRateScheduler(Constant(), batch_scaling=rule, reference_batch_size=reference)
    data = loader(batch_size=batch)
    seen = rates_of(scheduler, data=data, accumulate_grad_batches=accumulate)
    assert seen == pytest.approx([0.1 * times] * len(seen))


def test_linear_makes_one_step_of_four_where_the_gradient_is_constant():
    """What the rule is for (Goyal et al. 2017): one step on four times the items goes as far as four steps."""

    class Slope(Plain):
        def training_step(self, batch, batch_idx):
            return (self.net.weight * batch[0].mean(0)).sum()

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=0.1)

    def trained(scheduler, batch):
        torch.manual_seed(0)
        module = Slope(nn.Linear(8, 1, bias=False))
        torch.manual_seed(1)
        data = DataLoader(TensorDataset(torch.randn(96, 8)), batch_size=batch)
        fit(module, scheduler, data=data, max_epochs=1)
        return module.net.weight.detach()

    small = trained(LearningRateScheduler(Constant()), 8)
    scaled = LearningRateScheduler(Constant(), batch_scaling="linear", reference_batch_size=8)
    torch.testing.assert_close(trained(scaled, 32), small)


def test_a_batch_sampler_tells_its_size():
    data = loader(batch_size=8)
    data = DataLoader(data.dataset, batch_sampler=torch.utils.data.BatchSampler(range(96), 24, False))
    scheduler = LearningRateScheduler(Constant(), batch_scaling="linear", reference_batch_size=8)
    assert rates_of(scheduler, data=data, max_epochs=1) == pytest.approx([0.3] * 4)


def test_it_says_what_it_does(caplog):
    with caplog.at_level("INFO"):
        rates_of(LearningRateScheduler(Constant(), batch_scaling="sqrt", reference_batch_size=2), data=loader())
    assert "learning rate x 2: 8 items per step (8 a batch x 1 processes x 1 accumulated)" in caplog.text


@pytest.mark.parametrize(("on_resume", "times"), [("config", 4.0), ("checkpoint", 2.0)])
def test_resumed_with_another_batch(on_resume, times, tmp_path):
    first = LearningRateScheduler(Constant(), batch_scaling="linear", reference_batch_size=4)
    run = fit(Plain(nn.Linear(8, 4), lr=0.1), first, data=loader(), max_epochs=1)
    run.save_checkpoint(tmp_path / "one.ckpt")
    second = LearningRateScheduler(Constant(), on_resume=on_resume, batch_scaling="linear", reference_batch_size=4)
    seen = rates_of(second, data=loader(batch_size=16), ckpt=tmp_path / "one.ckpt")
    assert seen == pytest.approx([0.1 * times] * 6)


@pytest.mark.parametrize(
    ("others", "data", "message"),
    [
        ([], lambda: list(loader()), "list. tells none"),
        ([LearningRateFinder], loader, "leave batch_scaling out"),
        ([lambda: GradientAccumulationScheduler({0: 1, 1: 2})], loader, "one batch for the whole run"),
    ],
)
def test_what_it_cannot_know_is_refused(others, data, message):
    scheduler = LearningRateScheduler(Constant(), batch_scaling="linear", reference_batch_size=4)
    with pytest.raises(ValueError, match=message):
        rates_of(scheduler, *[make() for make in others], data=data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_scaling": "cubic", "reference_batch_size": 4}, "batch_scaling must be None, 'linear' or 'sqrt'"),
        ({"batch_scaling": "linear"}, "reference_batch_size must be one or more items per step"),
        ({"reference_batch_size": 4}, "together with batch_scaling"),
        ({"batch_scaling": "linear", "reference_batch_size": 0}, "reference_batch_size must be one or more"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LearningRateScheduler(Constant(), **options)
