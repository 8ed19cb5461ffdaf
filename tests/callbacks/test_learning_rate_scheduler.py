"""LearningRateScheduler: torch's LambdaLR bit for bit, the same rates after a resume from any step, one writer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import LambdaLR, StepLR

from firstlight.callbacks import LearningRateScheduler
from firstlight.schedules import Constant, CosineAnnealing, StepDecay, WarmupCosine, lr_lambda
from helpers import Plain, Rates, ResumableLoader, SaveEveryStep, fit, loader, network, same, supervised, weights


class Rows(CSVLogger):
    """Keeps what it was given to write."""

    def __init__(self, folder) -> None:
        super().__init__(folder, "", "")
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        super().log_metrics(metrics, step)
        self.rows.append(dict(metrics))


class Grouped(Plain):
    """Two groups at a ratio of ten, and the user's own scheduler if asked."""

    def __init__(self, scheduler: Any = None, **kwargs: Any) -> None:
        torch.manual_seed(1)
        super().__init__(network(dropout=0.0), **kwargs)
        self.scheduler = scheduler

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[0].parameters(), "lr": self.lr / 10}, {"params": self.net[4].parameters()}]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9)
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": "step"}]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("schedule", [WarmupCosine(0.3), StepDecay(2, gamma=0.5, warmup=2), CosineAnnealing(0.1)])
def test_equals_lambda_lr_bit_for_bit(schedule, accumulate):
    ours, theirs = Rates(), Rates()
    steps = 2 * -(-12 // accumulate)
    a = Grouped()
    fit(a, LearningRateScheduler(schedule), ours, data=loader(), accumulate_grad_batches=accumulate)
    b = Grouped(lambda optimizer: LambdaLR(optimizer, lr_lambda(schedule, steps)))
    fit(b, theirs, data=loader(), accumulate_grad_batches=accumulate)
    assert len(ours.seen) == steps
    assert ours.seen == theirs.seen
    assert same(weights(a), weights(b))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_resume_from_every_step_equals_the_unbroken_run(accumulate, tmp_path):
    def run(ckpt: Any = None, *more: Callback) -> tuple[list[Any], Any]:
        module, rates = Grouped(), Rates()
        scheduler = LearningRateScheduler(WarmupCosine(warmup=3))
        fit(module, scheduler, rates, *more, data=ResumableLoader(), ckpt=ckpt, accumulate_grad_batches=accumulate)
        return rates.seen, weights(module)

    whole, final = run(None, SaveEveryStep(tmp_path))
    assert len(whole) == 2 * -(-5 // accumulate)
    for stop in sorted(tmp_path.glob("*.ckpt")):
        rates, state = run(stop)
        assert rates == whole[int(stop.stem) :], stop.stem
        assert same(state, final), stop.stem


def test_group_ratios_stay():
    rates = Rates()
    fit(Grouped(), LearningRateScheduler(WarmupCosine(0.3)), rates)
    assert all(slow == pytest.approx(fast / 10) for slow, fast in rates.seen)
    assert len(set(rates.seen)) > 10


def test_the_rate_is_the_same_tensor_object_for_optimizers_that_hold_on_to_it():
    class Tensored(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=torch.tensor(0.1), momentum=0.9)

    module, rates = Tensored(), Rates()
    run = fit(module, LearningRateScheduler(Constant(warmup=4)), rates)
    assert isinstance(run.optimizers[0].param_groups[0]["lr"], torch.Tensor)
    assert [rate for (rate,) in rates.seen[:5]] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_a_group_added_later_joins_at_the_current_factor():
    class Unfreeze(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.optimizers[0].add_param_group({"params": [pl_module.late], "lr": 0.4})

    class Late(Plain):
        def __init__(self):
            super().__init__()
            self.late = torch.nn.Parameter(torch.zeros(4))

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + (self.late**2).sum()

    rates = Rates()
    fit(Late(), Unfreeze(), LearningRateScheduler(CosineAnnealing()), rates)
    factors = [CosineAnnealing().factor(step, 24) for step in range(24)]
    assert [seen[0] for seen in rates.seen] == pytest.approx([0.1 * f for f in factors])
    assert [seen[1] for seen in rates.seen[6:]] == pytest.approx([0.4 * f for f in factors[6:]])


class TwoClocks(LightningModule):
    """Manual optimization; the second optimizer steps every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(1)
        self.a, self.b = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)

    def training_step(self, batch, batch_idx):
        for number, (optimizer, layer) in enumerate(zip(self.optimizers(), (self.a, self.b), strict=True)):
            if number == 0 or batch_idx % 2 == 0:
                optimizer.zero_grad()
                self.manual_backward(torch.nn.functional.cross_entropy(layer(batch[0]), batch[1]))
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.a.parameters(), lr=0.1), torch.optim.SGD(self.b.parameters(), lr=0.2)]


def test_several_optimizers_each_with_its_own_clock(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}{batch_idx}.ckpt")

    def run(ckpt: Any = None, *more: Callback) -> tuple[list[Any], Any]:
        module, rates = TwoClocks(), Rates()
        scheduler = LearningRateScheduler(WarmupCosine(warmup=2), total_steps=10)
        fit(module, scheduler, rates, *more, data=ResumableLoader(), ckpt=ckpt)
        return rates.seen, weights(module)

    whole, final = run(None, Save())
    factors = [WarmupCosine(warmup=2).factor(step, 10) for step in range(10)]
    rates_of_b = iter(0.2 * f for f in factors)
    expected = []
    for batch in range(10):
        expected.append((0.1 * factors[batch],))
        if batch % 5 % 2 == 0:
            expected.append((next(rates_of_b),))
    assert whole == expected
    for stop in sorted(tmp_path.glob("*.ckpt")):
        rates, state = run(stop)
        assert rates == whole[len(whole) - len(rates) :]
        assert same(state, final), stop.stem


def test_two_writers_are_refused():
    module = Grouped(lambda optimizer: StepLR(optimizer, 5))
    with pytest.raises(ValueError, match="two writers of the learning rate: LearningRateScheduler and StepLR"):
        fit(module, LearningRateScheduler(Constant(warmup=3)))


def test_multiply_goes_on_top_of_a_scheduler_that_never_sees_the_product(tmp_path):
    rates, logger = Rates(), CSVLogger(tmp_path, "", "")
    module = Grouped(lambda optimizer: StepLR(optimizer, 5, gamma=0.5))
    scheduler = LearningRateScheduler(Constant(warmup=4), compose="multiply")
    run = fit(module, scheduler, rates, logger=logger, log_every_n_steps=1)
    expected = [0.1 * 0.5 ** (step // 5) * min(1, (step + 1) / 4) for step in range(24)]
    assert [fast for _, fast in rates.seen] == pytest.approx(expected)
    assert run.lr_scheduler_configs[0].scheduler.base_lrs == pytest.approx([0.01, 0.1])
    assert run.optimizers[0].param_groups[1]["lr"] == pytest.approx(0.1 * 0.5**4)
    assert run.callback_metrics["lr/group_1"].item() == pytest.approx(expected[-1])
    assert "optimizer_step" not in vars(module)


def test_multiply_puts_the_module_back_after_a_crash():
    class Crash(Callback):
        def on_train_batch_end(self, *args):
            raise KeyError("boom")

    module = Grouped(lambda optimizer: StepLR(optimizer, 5))
    with pytest.raises(KeyError):
        fit(module, LearningRateScheduler(Constant(warmup=4), compose="multiply"), Crash())
    assert "optimizer_step" not in vars(module)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(8), torch.tensor(0)


def test_a_run_of_unknown_length_is_refused_with_its_cause():
    data = torch.utils.data.DataLoader(Endless(), batch_size=4)
    with pytest.raises(ValueError, match=r"WarmupCosine needs the length .* no length; set max_steps= "):
        fit(Grouped(), LearningRateScheduler(WarmupCosine()), data=data, limit_train_batches=None)
    with pytest.raises(ValueError, match="max_epochs=-1 and max_steps=-1"):
        fit(Grouped(), LearningRateScheduler(WarmupCosine()), max_epochs=-1)
    rates = Rates()
    fit(Grouped(), LearningRateScheduler(Constant(warmup=2)), rates, data=data, max_epochs=-1, max_steps=4)
    assert len(rates.seen) == 4


def test_horizon_changed_on_resume_is_recomputed_and_announced(tmp_path, caplog):
    fit(Grouped(), LearningRateScheduler(CosineAnnealing()), data=ResumableLoader(), max_epochs=1).save_checkpoint(
        tmp_path / "one.ckpt"
    )
    rates = Rates()
    again = {"data": ResumableLoader(), "max_epochs": 4, "ckpt": tmp_path / "one.ckpt"}
    with caplog.at_level("INFO"):
        fit(Grouped(), LearningRateScheduler(CosineAnnealing()), rates, **again)
    assert "because total_steps went 5 -> 20" in caplog.text
    assert [fast for _, fast in rates.seen] == pytest.approx(
        [0.1 * CosineAnnealing().factor(s, 20) for s in range(5, 20)]
    )
    rates = Rates()
    fit(Grouped(), LearningRateScheduler(CosineAnnealing(), on_resume="checkpoint"), rates, **again)
    assert {fast for _, fast in rates.seen} == {0.0}, "the checkpoint's run ended at step 5"


@pytest.mark.parametrize(("on_resume", "base"), [("config", 0.5), ("checkpoint", 0.1)])
def test_base_rate_on_resume(on_resume, base, tmp_path):
    first = LearningRateScheduler(Constant(warmup=2))
    fit(Grouped(), first, data=ResumableLoader(), max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    rates = Rates()
    second = LearningRateScheduler(Constant(warmup=2), on_resume=on_resume)
    fit(Grouped(lr=0.5), second, rates, data=ResumableLoader(), ckpt=tmp_path / "one.ckpt")
    assert [fast for _, fast in rates.seen] == pytest.approx([base] * 5)


def test_someone_elses_write_is_noticed_once_and_left_alone():
    class Meddler(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                trainer.optimizers[0].param_groups[0]["lr"] = 0.077

    rates = Rates()
    with pytest.warns(UserWarning, match="something else set the learning rate") as caught:
        fit(Grouped(), LearningRateScheduler(CosineAnnealing()), Meddler(), rates)
    assert sum("something else" in str(warning.message) for warning in caught) == 1
    assert [slow for slow, _ in rates.seen[4:]] == [0.077] * 20
    assert rates.seen[-1][1] < 0.001


@pytest.mark.parametrize("order", [0, 1])
def test_learning_rate_monitor_in_any_order_sees_the_rate_of_the_step(order, tmp_path):
    logger, rates = Rows(tmp_path), Rates()
    callbacks = [LearningRateScheduler(WarmupCosine(0.2)), LearningRateMonitor("step")]
    fit(Grouped(), *(callbacks if order else callbacks[::-1]), rates, logger=logger, log_every_n_steps=1)
    seen = [row["lr-SGD/pg2"] for row in logger.rows if "lr-SGD/pg2" in row]
    assert seen == [fast for _, fast in rates.seen]


def test_learning_rate_finder_finds_and_the_schedule_takes_over(tmp_path):
    rates = Rates()
    module = Plain(lr=0.1)
    finder = LearningRateFinder(num_training_steps=20)
    fit(module, finder, LearningRateScheduler(Constant(warmup=2)), rates, default_root_dir=tmp_path)
    suggested = module.lr
    assert suggested != 0.1
    assert [rate for (rate,) in rates.seen[-10:]] == pytest.approx([suggested] * 10)


def test_a_warmup_longer_than_the_run_warns():
    with pytest.warns(UserWarning, match="warm-up of 500 steps is longer than the run of 24"):
        fit(Grouped(), LearningRateScheduler(WarmupCosine(warmup=500)))


def test_epochs_and_batches_count_accumulation():
    rates = Rates()
    fit(Grouped(), LearningRateScheduler(Constant(warmup="1ep")), rates, accumulate_grad_batches=3)
    assert [fast for _, fast in rates.seen] == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 5)


def test_logs_the_rate_of_each_group_by_name(tmp_path):
    rates, logged = Rates(), []

    class Reader(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            logged.append([trainer.callback_metrics[f"lr/{name}"].item() for name in ("decay", "no_decay")])

    fit(supervised(), LearningRateScheduler(WarmupCosine(0.3)), rates, Reader(), log_every_n_steps=1)
    assert [tuple(row) for row in logged] == rates.seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_logged_is_the_rate_of_its_step(accumulate, tmp_path):
    """Rates are logged at log steps only; the row of a step holds the rate of that step, and no other row has one."""
    rates, logger = Rates(), Rows(tmp_path)
    settings = {"log_every_n_steps": 5, "accumulate_grad_batches": accumulate}
    fit(Grouped(), LearningRateScheduler(WarmupCosine(0.3)), rates, logger=logger, **settings)
    assert [row["lr/group_1"] for row in logger.rows] == [fast for _, fast in rates.seen][4::5]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule": "cosine"}, TypeError, "schedule must be a firstlight Schedule"),
        ({"schedule": Constant(), "total_steps": 0}, ValueError, "total_steps must be one or more"),
        ({"schedule": Constant(), "compose": "add"}, ValueError, "compose must be None or 'multiply'"),
        ({"schedule": Constant(), "on_resume": "code"}, ValueError, "on_resume must be 'config' or 'checkpoint'"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        LearningRateScheduler(**options)


def test_a_second_fit_starts_afresh():
    scheduler = LearningRateScheduler(CosineAnnealing())
    first, second = Rates(), Rates()
    fit(Grouped(), scheduler, first)
    fit(Grouped(lr=0.2), scheduler, second)
    assert [2 * fast for _, fast in first.seen] == pytest.approx([fast for _, fast in second.seen])
