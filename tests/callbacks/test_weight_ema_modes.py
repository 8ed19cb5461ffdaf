"""WeightEMA in company: Lightning's averaging, 16-bit weights, several optimizers, early stopping, checkpoints."""

from __future__ import annotations

import itertools
from typing import Any

import lightning.pytorch.callbacks as theirs
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from firstlight.callbacks import EarlyStopping, WeightEMA
from helpers import Plain, ResumableLoader, TwoOptimizers, fit, loader, network, same, weights


class Trajectory(Callback):
    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.states.append(weights(pl_module))


class SaveAt(Callback):
    def __init__(self, step: int, path: Any) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def plain() -> Plain:
    torch.manual_seed(1)
    return Plain(network(0.0))


def average(states: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The definition, in float64, of what can be averaged."""
    result = {key: value.double() for key, value in states[0].items() if value.is_floating_point()}
    for state in states[1:]:
        result = {key: decay * value + (1 - decay) * state[key].double() for key, value in result.items()}
    return result


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the other callback is meant
def test_lightnings_takes_up_a_run_of_ours(tmp_path):
    fit(plain(), WeightEMA(0.9), SaveAt(7, tmp_path / "a.ckpt"), data=ResumableLoader())
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    seen: dict[str, Any] = {}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen["training"] = weights(pl_module)
            seen["average"] = weights(ema._average_model.module)

    ema = EMAWeightAveraging(decay=0.9)
    fit(plain(), ema, Look(), data=ResumableLoader(), ckpt=tmp_path / "a.ckpt")
    assert same(seen["training"], dict(stored["current_model_state"]))
    assert same(seen["average"], dict(stored["state_dict"]))


def test_bfloat16_weights_have_an_average_of_float32_exact_through_a_resume(tmp_path):
    """1 - decay = 1e-3 is below bfloat16's resolution: in its own precision the average would hardly move."""

    def run(ckpt: Any = None, *more: Callback) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        module, ema, left = plain(), WeightEMA(0.999), {}

        class Look(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                left.update({key: value.clone() for key, value in ema._averages.items()})

        fit(module, ema, Look(), *more, data=ResumableLoader(), ckpt=ckpt, precision="bf16-true", max_epochs=4)
        return left, weights(module)

    trajectory = Trajectory()
    averages, final = run(None, trajectory, SaveAt(7, tmp_path / "a.ckpt"))
    assert trajectory.states[0]["net.0.weight"].dtype == final["net.0.weight"].dtype == torch.bfloat16
    for key, value in average(trajectory.states, 0.999).items():
        assert averages[key].dtype == torch.float32
        torch.testing.assert_close(averages[key].double(), value, rtol=1e-5, atol=1e-7)
        assert torch.equal(final[key], averages[key].bfloat16())
    again, end = run(tmp_path / "a.ckpt")
    assert same(averages, again)
    assert same(final, end)


@pytest.mark.parametrize(("every", "chosen"), [(1, range(24)), (2, range(24)), (3, None)])
def test_steps_of_several_optimizers_are_counted_together(every, chosen):
    module, trajectory = TwoOptimizers(), Trajectory()
    fit(module, WeightEMA(0.9, every), trajectory)
    if chosen is None:  # after batch n there were 2 n steps: a multiple of three was passed in two batches of three
        chosen = [n for n in range(24) if (2 * n + 2) // 3 > (2 * n) // 3]
        assert len(chosen) == 16
    expected = average([trajectory.states[n] for n in chosen], 0.9**every)
    for key, value in expected.items():
        torch.testing.assert_close(weights(module)[key].double(), value, rtol=1e-5, atol=1e-6)


class Scripted(Plain):
    """Its metric follows a script, one value an epoch; it keeps what each validation saw."""

    def __init__(self, values: list[float]) -> None:
        torch.manual_seed(1)
        super().__init__(network(0.0))
        self.values = values
        self.shown: list[dict[str, torch.Tensor]] = []

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.shown.append(weights(self))
        self.log("val/loss", torch.tensor(self.values[self.current_epoch]))


@pytest.mark.parametrize("averaging", [lambda: WeightEMA(0.7), lambda: EMAWeightAveraging(decay=0.7)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_best_is_what_validation_saw_in_any_order(averaging, order, tmp_path):
    values = [3.0, 1.0, 2.0, 2.0, 2.0]
    stopping = EarlyStopping("val/loss", patience=2, restore_best=True)
    best = ModelCheckpoint(tmp_path, monitor="val/loss")
    callbacks = [averaging(), stopping, best]
    module = Scripted(values)
    settings = {"val": loader(shuffle=False), "max_epochs": 5, "enable_checkpointing": True}
    fit(module, *(callbacks[number] for number in order), **settings)
    assert len(module.shown) == 4
    ends = weights(module), dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    for end in ends:
        # Floating-point state is the average; of counters validation saw those of training.
        assert same(end, module.shown[1])
    assert not same(module.shown[1], module.shown[3])


def test_with_lightnings_early_stopping_the_last_average_stays():
    module = Scripted([3.0, 1.0, 2.0, 2.0, 2.0])
    settings = {"val": loader(shuffle=False), "max_epochs": 5}
    fit(module, WeightEMA(0.7), theirs.EarlyStopping("val/loss", patience=2), **settings)
    assert same(weights(module), module.shown[3])


def test_a_run_that_crashes_leaves_the_weights_of_training():
    class Crash(Callback):
        def on_validation_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise KeyError("boom")

    module, trajectory = Scripted([1.0, 1.0]), Trajectory()
    with pytest.raises(KeyError):
        fit(module, WeightEMA(0.7), trajectory, Crash(), val=loader(shuffle=False))
    assert same(weights(module), trajectory.states[-1])
