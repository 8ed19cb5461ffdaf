"""LearningRateScheduler in company: every schedule, other callbacks, finders, scalers, swapped optimizers.

The expected rates are ``base * schedule.factor(step, total)``, torch's own schedulers, or a run without it.
"""

from __future__ import annotations

import datetime
import itertools
import warnings
from typing import Any

import pytest
import torch
from contracts.cases import rows
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset

from firstlight.callbacks import LearningRateScheduler
from firstlight.schedules import Constant, CosineAnnealing, WarmupCosine, WarmupInverseSqrt
from helpers import (
    Plain,
    Rates,
    ResumableLoader,
    SaveEveryStep,
    TwoOptimizers,
    fit,
    loader,
    network,
    same,
    trainer,
    weights,
)

STEPS = 24  # of a fit of the helpers: two epochs of twelve batches


class Halves(Plain):
    """A backbone and a head; the head alone is given to the optimizer, or both at a ratio of ten."""

    def __init__(self, *, both: bool = False, scheduler: Any = None, lr: float = 0.1) -> None:
        torch.manual_seed(1)
        super().__init__(network(dropout=0.0), lr=lr)
        self.backbone, self.head = self.net[:4], self.net[4]
        self.both, self.scheduler = both, scheduler

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.head.parameters(), "lr": self.lr}]
        groups += [{"params": self.backbone.parameters(), "lr": self.lr / 10}] if self.both else []
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}


SCHEDULES = [schedule for row in rows("schedules").values() for schedule in row.variants]


@pytest.mark.filterwarnings("ignore:warm-up of 500 steps is longer")  # on purpose: it is clamped
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_schedule_on_a_trainer_is_its_factor(schedule):
    rates = Rates()
    fit(Halves(both=True), LearningRateScheduler(schedule), rates)
    factors = [schedule.factor(step, STEPS) for step in range(STEPS)]
    assert rates.seen == [(0.1 * factor, 0.1 / 10 * factor) for factor in factors]


class Unfreeze(BaseFinetuning):
    """Gives the backbone to the optimizer in the second epoch, at a base rate of its own."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=0.02)


def within_epochs(folder) -> list[Any]:
    """Leave out checkpoints after an epoch's last batch: resumed there, Lightning starts no epoch, and nothing thaws.

    Nor does anything thaw again after a resume within one: the rates are compared, and not the weights.
    """
    return [stop for stop in sorted(folder.glob("*.ckpt")) if int(stop.stem) % 5]


@pytest.mark.parametrize("first", [0, 1], ids=["after", "before"])
def test_a_backbone_unfrozen_in_the_second_epoch_follows_from_its_first_step_and_after_a_resume(first, tmp_path):
    def run(ckpt: Any = None, *more: Callback) -> list[Any]:
        rates, callbacks = Rates(), [Unfreeze(), LearningRateScheduler(CosineAnnealing())]
        fit(Halves(), *(callbacks[::-1] if first else callbacks), rates, *more, data=ResumableLoader(), ckpt=ckpt)
        return rates.seen

    whole = run(None, SaveEveryStep(tmp_path))
    factors = [CosineAnnealing().factor(step, 10) for step in range(10)]
    assert whole == [(0.1 * f,) for f in factors[:5]] + [(0.1 * f, 0.02 * f) for f in factors[5:]]
    for stop in within_epochs(tmp_path):
        assert run(stop) == whole[int(stop.stem) :], stop.stem


@pytest.mark.filterwarnings("ignore:LearningRateScheduler. something else set the learning rate of group")
def test_backbone_finetuning_keeps_its_own_rate_after_a_resume_too(tmp_path):
    """It writes the backbone's rate once an epoch: from its second write on the group is its own, for good."""

    def run(ckpt: Any = None, *more: Callback) -> list[Any]:
        rates = Rates()
        finetuning = BackboneFinetuning(1, lambda epoch: 1.5, backbone_initial_lr=0.02, should_align=False)
        settings = {"data": ResumableLoader(), "max_epochs": 4, "ckpt": ckpt}
        fit(Halves(), finetuning, LearningRateScheduler(CosineAnnealing()), rates, *more, **settings)
        return rates.seen

    whole = run(None, SaveEveryStep(tmp_path))
    factors = [CosineAnnealing().factor(step, 20) for step in range(20)]
    assert [rates[0] for rates in whole] == [0.1 * f for f in factors]
    assert [rates[1] for rates in whole[5:10]] == [0.02 * f for f in factors[5:10]]
    assert [rates[1] for rates in whole[10:]] == pytest.approx([0.03] * 5 + [0.045] * 5)
    for stop in within_epochs(tmp_path):
        assert run(stop) == whole[int(stop.stem) :], stop.stem


class Tensored(Plain):
    """Its rate is a tensor."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)))

    def configure_optimizers(self):
        self.rate = torch.tensor(0.1)
        return torch.optim.Adam(self.net.parameters(), lr=self.rate)


class Compiled(Tensored):
    """Its optimizer steps by a compiled graph, which holds on to that tensor."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.graphs = 0
        self.compiled_step = torch.compile(lambda: optimizer.step(), backend=self.backend)
        return optimizer

    def backend(self, graph, inputs):
        self.graphs += 1
        return graph

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        self.compiled_step()


def test_a_rate_that_is_a_tensor_stays_the_same_object():
    module, rates = Tensored(), Rates()
    run = fit(module, LearningRateScheduler(WarmupCosine(3)), rates)
    assert run.optimizers[0].param_groups[0]["lr"] is module.rate
    expected = [0.1 * WarmupCosine(3).factor(step, STEPS) for step in range(STEPS)]
    assert [rate for (rate,) in rates.seen] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of parts that its compiler imports
def test_a_compiled_step_follows_without_compiling_again():
    eager, compiled, constant = Tensored(), Compiled(), Compiled()
    fit(eager, LearningRateScheduler(WarmupCosine(3)))
    fit(compiled, LearningRateScheduler(WarmupCosine(3)))
    torch.compiler.reset()
    fit(constant)
    torch.compiler.reset()
    assert compiled.graphs == constant.graphs > 0
    for name, value in weights(eager).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-3, atol=1e-4)


class Stream(IterableDataset):
    def __iter__(self):
        for _ in range(5 * 8):
            yield torch.randn(8), torch.tensor(0)


def test_a_stream_is_trained_with_what_needs_no_end_and_refused_else():
    data = DataLoader(Stream(), batch_size=8)
    for schedule in (Constant(warmup=3), Constant(warmup="4ba"), WarmupInverseSqrt(3)):
        rates = Rates()
        fit(Halves(), LearningRateScheduler(schedule), rates, data=data)
        known = schedule.resolve(steps_per_epoch=None)
        assert [rate for (rate,) in rates.seen] == [0.1 * known.factor(step) for step in range(10)]
    rates = Rates()
    fit(Halves(), LearningRateScheduler(CosineAnnealing(), total_steps=10), rates, data=data)
    assert [rate for (rate,) in rates.seen] == [0.1 * CosineAnnealing().factor(step, 10) for step in range(10)]
    with pytest.raises(ValueError, match="duration must be in steps or batches, since the loader has no length"):
        fit(Halves(), LearningRateScheduler(Constant(warmup="1ep")), data=data)


@pytest.mark.parametrize(
    ("scheduling", "steps"), [({0: 1, 1: 4}, 12 + 3), ({0: 4}, 6), ({1: 5}, 12 + 3), ({0: 2, 5: 4}, 12)]
)
def test_a_changing_accumulation_is_counted_exactly(scheduling, steps):
    rates = Rates()
    fit(Halves(), GradientAccumulationScheduler(dict(scheduling)), LearningRateScheduler(CosineAnnealing()), rates)
    assert [rate for (rate,) in rates.seen] == [0.1 * CosineAnnealing().factor(step, steps) for step in range(steps)]


def test_durations_in_epochs_need_an_accumulation_that_does_not_change():
    changing = GradientAccumulationScheduler({0: 1, 1: 4})
    with pytest.raises(ValueError, match=r"Constant\(warmup='1ep'\) counts epochs or batches, and GradientAccum"):
        fit(Halves(), changing, LearningRateScheduler(Constant(warmup="1ep")))
    rates = Rates()
    fit(Halves(), GradientAccumulationScheduler({0: 4}), LearningRateScheduler(Constant(warmup="1ep")), rates)
    assert [rate for (rate,) in rates.seen] == pytest.approx([0.1 / 3, 0.2 / 3] + [0.1] * 4)


@pytest.mark.parametrize(
    ("limits", "cause"),
    [
        ({"max_time": datetime.timedelta(seconds=9), "max_epochs": None}, "max_time ends it by the clock"),
        ({"max_epochs": -1}, "max_epochs=-1 and max_steps=-1 set no end"),
    ],
)
def test_a_run_without_a_known_end_is_refused_with_its_cause(limits, cause):
    with pytest.raises(ValueError, match=f"WarmupCosine needs the length of the run, and it is not known: {cause}; "):
        fit(Halves(), LearningRateScheduler(WarmupCosine()), **limits)


def test_max_steps_of_several_optimizers_is_no_length_of_one():
    """Lightning counts every optimizer's step: the run of 16 ends when each has made 8."""
    with pytest.raises(ValueError, match="max_steps=16 counts the steps of all 2 optimizers; pass total_steps="):
        fit(TwoOptimizers(), LearningRateScheduler(CosineAnnealing()), max_steps=16)
    rates = Rates()
    fit(TwoOptimizers(), LearningRateScheduler(CosineAnnealing(), total_steps=8), rates, max_steps=16)
    expected = [0.1 * CosineAnnealing().factor(step, 8) for step in range(8)]
    assert [rate for (rate,) in rates.seen] == [rate for rate in expected for _ in range(2)]
    rates = Rates()
    fit(TwoOptimizers(), LearningRateScheduler(CosineAnnealing()), rates)
    assert [rate for (rate,) in rates.seen[::2]] == [0.1 * CosineAnnealing().factor(step, STEPS) for step in range(24)]


def test_multiply_resumed_from_every_step_is_the_unbroken_run(tmp_path):
    def run(ckpt: Any = None, *more: Callback) -> tuple[list[Any], Any]:
        module = Halves(scheduler=lambda opt: {"scheduler": StepLR(opt, 3, gamma=0.5), "interval": "step"})
        rates, warmup = Rates(), LearningRateScheduler(Constant(warmup=4), compose="multiply")
        fit(module, warmup, rates, *more, data=ResumableLoader(), ckpt=ckpt)
        return rates.seen, weights(module)

    whole, final = run(None, SaveEveryStep(tmp_path))
    assert [rate for (rate,) in whole] == pytest.approx(
        [0.1 * 0.5 ** (s // 3) * min(1, (s + 1) / 4) for s in range(10)]
    )
    for stop in sorted(tmp_path.glob("*.ckpt")):
        rates, state = run(stop)
        assert rates == whole[int(stop.stem) :], stop.stem
        assert same(state, final), stop.stem


def test_multiply_with_a_plateau_that_never_sees_the_product():
    metrics = [3.0, 2.0, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5]

    class Scripted(Halves):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.tensor(metrics[self.current_epoch]))

    def plateau(optimizer):
        return {"scheduler": ReduceLROnPlateau(optimizer, factor=0.5, patience=0), "monitor": "val/loss"}

    rates, module = Rates(), Scripted(scheduler=plateau)
    settings = {"val": loader(shuffle=False), "max_epochs": len(metrics), "limit_train_batches": 2}
    run = fit(module, LearningRateScheduler(Constant(warmup=6), compose="multiply"), rates, **settings)
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # the same scheduler, by hand
    scheduler, undamped = ReduceLROnPlateau(alone, factor=0.5, patience=0), []
    for metric in metrics:
        undamped += [alone.param_groups[0]["lr"]] * 2
        scheduler.step(metric)
    expected = [rate * min(1, (step + 1) / 6) for step, rate in enumerate(undamped)]
    assert [rate for (rate,) in rates.seen] == pytest.approx(expected)
    assert run.optimizers[0].param_groups[0]["lr"] == alone.param_groups[0]["lr"] == 0.1 * 0.5**5


@pytest.mark.parametrize("finder_first", [True, False])
def test_a_suggestion_survives_and_groups_keep_their_ratios(finder_first, tmp_path):
    rates, module = Rates(), Halves(both=True)
    callbacks = [LearningRateFinder(num_training_steps=20), LearningRateScheduler(WarmupCosine(3))]
    fit(module, *(callbacks if finder_first else callbacks[::-1]), rates, default_root_dir=tmp_path)
    suggested = module.lr
    assert suggested not in (0.1, None)
    factors = [WarmupCosine(3).factor(step, STEPS) for step in range(STEPS)]
    assert rates.seen[-STEPS:] == [(suggested * factor, suggested / 10 * factor) for factor in factors]


def test_a_suggestion_of_the_tuner_survives(tmp_path):
    rates, module = Rates(), Halves(both=True)
    run = trainer(callbacks=[LearningRateScheduler(WarmupCosine(3)), rates], default_root_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, of a Trainer that is used twice
        found = Tuner(run).lr_find(module, loader(), num_training=20)
    rates.seen.clear()
    run.fit(module, loader())
    factors = [WarmupCosine(3).factor(step, STEPS) for step in range(STEPS)]
    assert rates.seen == [(found.suggestion() * factor, found.suggestion() / 10 * factor) for factor in factors]


def test_rates_set_by_a_callback_before_training_are_base_rates():
    class Setter(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.optimizers[0].param_groups[0]["lr"] = 0.3

    rates = Rates()
    fit(Halves(), Setter(), LearningRateScheduler(Constant(warmup=2)), rates)
    assert [rate for (rate,) in rates.seen[:3]] == [0.15, 0.3, 0.3]


def test_with_a_monitor_a_finder_and_the_schedule_in_any_order(tmp_path):
    """What trains does not depend on who is listed first."""
    ends = []
    for number, order in enumerate(itertools.permutations(range(3))):
        callbacks = [LearningRateFinder(num_training_steps=10), LearningRateScheduler(WarmupCosine(3))]
        callbacks.append(LearningRateMonitor("step"))
        module, rates = Halves(both=True), Rates()
        logger = CSVLogger(tmp_path / str(number), "", "")
        fit(module, *(callbacks[i] for i in order), rates, logger=logger, default_root_dir=tmp_path)
        ends.append((rates.seen[-STEPS:], weights(module)))
    assert all(rates == ends[0][0] and same(state, ends[0][1]) for rates, state in ends[1:])


class Overflowing(Callback):
    """Loses the gradient of one step to an overflow, as fp16 does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.at:
            pl_module.head.weight.grad.fill_(torch.inf)


@pytest.mark.parametrize("compose", [None, "multiply"])
def test_the_clock_counts_a_step_that_the_scaler_skips_as_lightning_does(compose):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    applied: list[int] = []
    rates = Rates()

    class Applied(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.optimizers[0].register_step_post_hook(lambda *_: applied.append(trainer.global_step))

    module = Halves(scheduler=None if compose is None else lambda optimizer: StepLR(optimizer, 1000))
    schedule = LearningRateScheduler(WarmupCosine(5), compose=compose)
    run = fit(module, schedule, Overflowing(3), rates, Applied(), plugins=[precision], max_epochs=1)
    assert applied == [0, 1, 2, *range(4, 12)], "the fourth step was skipped"
    assert run.global_step == 12
    assert scaler.get_scale() == 2.0**9
    expected = [0.1 * WarmupCosine(5).factor(step, 12) for step in range(12)]
    assert [rate for (rate,) in rates.seen] == expected


@pytest.mark.parametrize("manual", [False, True])
def test_optimizers_that_another_callback_puts_in_their_place_are_scheduled(manual):
    class Swap(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                old = trainer.strategy.optimizers
                trainer.strategy.optimizers = [
                    torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.5) for optimizer in old
                ]

    rates, factors = Rates(), [CosineAnnealing().factor(step, STEPS) for step in range(STEPS)]
    fit(TwoOptimizers() if manual else Halves(), Swap(), LearningRateScheduler(CosineAnnealing()), rates)
    seen = [rate for (rate,) in rates.seen]
    for one in [seen[::2], seen[1::2]] if manual else [seen]:
        assert one == [0.1 * f for f in factors[:12]] + [0.5 * f for f in factors[12:]]


def test_no_optimizer_lives_on_in_the_callback():
    callback = LearningRateScheduler(Constant())
    fit(Halves(), callback)
    held = [item for value in vars(callback).values() if isinstance(value, list) for item in value]
    assert not any(isinstance(item, torch.optim.Optimizer) for item in held)
