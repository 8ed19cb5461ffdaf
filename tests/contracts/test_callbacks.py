"""Laws of every callback, whatever its role: it leaves nothing behind, can be used again, and its state is plain.

Driven by the table of ``test_roles``, so that no callback can be left out.
"""

from __future__ import annotations

import functools
import io
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from contracts.test_roles import CASES, TwoOptimizers
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from firstlight.callbacks import (
    EarlyStopping,
    GradientClipping,
    GradientMonitor,
    HealthMonitor,
    LearningRateScheduler,
    ProgressBar,
    TokenWeightedAccumulation,
    WeightEMA,
    WeightInitialization,
)
from firstlight.recovery import NonFiniteGuard
from helpers import Plain, fit, fp16_on_the_cpu, loader, network, same, supervised, trainer, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:GeneratedSamples stands aside",
    "ignore:PredictionSamples stands aside",
    "ignore:TokenWeightedAccumulation stands aside under manual",
    "ignore:NonFiniteGuard stands aside under 16-mixed",
)

everyone = pytest.mark.parametrize("callback", list(CASES), ids=lambda cls: cls.__name__)


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(shuffle=False)

    def val_dataloader(self) -> Any:
        return loader(shuffle=False)


class Ends(Plain):
    """Ends in the way it is told, in the third batch or where else it says."""

    ending = ""

    def _end(self, here: str) -> None:
        if here == self.ending:
            raise KeyboardInterrupt if here == "interrupt" else RuntimeError("the end")

    def setup(self, stage: str) -> None:
        self._end("setup")

    def configure_model(self) -> None:
        self._end("configure_model")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            self._end("training_step")
            self._end("interrupt")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self._end("validation_step")
        return super().validation_step(batch, batch_idx)


class EndsByHand(Ends, TwoOptimizers):
    def __init__(self) -> None:
        TwoOptimizers.__init__(self)


def settings_of(mode: str) -> dict[str, Any]:
    return {"plugins": [fp16_on_the_cpu()]} if mode == "manual, 16-mixed" else {"accumulate_grad_batches": 2}


def left_by(run: Trainer, module: LightningModule, data: LightningDataModule) -> dict[str, Any]:
    """Return what a run leaves: instance attributes of everything that it touches, functions among them, and hooks."""
    touched: dict[str, Any] = {
        "trainer": run,
        "strategy": run.strategy,
        "precision": run.precision_plugin,
        "fit_loop": run.fit_loop,
        "epoch_loop": run.fit_loop.epoch_loop,
        "data": data,
        **{f"module.{name}": part for name, part in module.named_modules()},
        **{f"parameter.{name}": parameter for name, parameter in module.named_parameters()},
        **{f"optimizer.{number}": optimizer for number, optimizer in enumerate(run.optimizers)},
    }
    left: dict[str, Any] = {}
    for name, thing in touched.items():
        attributes = dict(getattr(thing, "__dict__", {}))
        if isinstance(thing, torch.Tensor):
            attributes |= {key: getattr(thing, key) for key in ("_backward_hooks", "_post_accumulate_grad_hooks")}
        for key, value in attributes.items():
            hooks = len(value or ()) if key.endswith("_hooks") else None
            left[f"{name}.{key}"] = hooks if hooks is not None else getattr(value, "__qualname__", None)
    return left


@pytest.fixture(autouse=True)
def _interrupts_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)  # Lightning turns it off for good
    yield
    signal.signal(signal.SIGINT, before)


def run_until(ending: str, mode: str, *callbacks: Callback) -> dict[str, Any]:
    seed_everything(3, workers=True, verbose=False)
    module, data = (EndsByHand() if mode.startswith("manual") else Ends()), Data()
    module.ending = ending
    run = trainer(callbacks=list(callbacks), enable_progress_bar=_shows(callbacks), **settings_of(mode))
    if not ending:
        run.fit(module, data)
    else:
        with pytest.raises((RuntimeError, SystemExit)) as caught:
            run.fit(module, data)
        assert str(caught.value) == ("1" if ending == "interrupt" else "the end")
    return left_by(run, module, data)


def _shows(callbacks: Sequence[Callback]) -> bool:
    return any(isinstance(callback, ProgressBar) for callback in callbacks)


@functools.cache
def left_by_a_bare_run(ending: str, mode: str) -> dict[str, Any]:
    return run_until(ending, mode)


@pytest.mark.parametrize("mode", ["automatic", "manual, 16-mixed"])
@pytest.mark.parametrize(
    "ending",
    ["", "training_step", "interrupt", "validation_step", "setup", "configure_model"],
    ids=lambda e: e or "end",
)
@everyone
def test_nothing_is_left_behind(callback, ending, mode):
    """However a run ends, its module, data, optimizers and Trainer are as a run without the callback leaves them."""
    bare = left_by_a_bare_run(ending, mode)
    assert run_until(ending, mode, callback(**CASES[callback])) == bare


class Untidy(Callback):
    def on_train_start(self, trainer, pl_module):
        pl_module.net.register_forward_hook(lambda *_: None)
        trainer.optimizers[0].register_step_post_hook(lambda *_: None)
        trainer.strategy.backward = trainer.strategy.backward


def test_the_law_catches_hooks_and_attributes():
    bare, untidy = left_by_a_bare_run("", "automatic"), run_until("", "automatic", Untidy())
    assert {key for key in untidy if untidy[key] != bare.get(key)} == {
        "module.net._forward_hooks",
        "optimizer.0._optimizer_step_post_hooks",
        "strategy.backward",
    }


@everyone
def test_used_again_it_is_as_good_as_new(callback):
    """A second fit, with a new Trainer and a new module, is the fit with a new callback."""

    def run(one: Callback) -> dict[str, Any]:
        module = supervised(model=network(dropout=0.0))
        fit(module, one, val=loader(shuffle=False), enable_progress_bar=_shows([one]))
        return weights(module)

    used = callback(**CASES[callback])
    run(used)
    assert same(run(used), run(callback(**CASES[callback])))


@everyone
def test_its_state_is_plain_values(callback, tmp_path):
    """Before a run and after it, alone and in a checkpoint, ``torch.load(weights_only=True)`` takes it."""
    one = callback(**CASES[callback])
    for moment in ("before", "after"):
        file = io.BytesIO()
        torch.save(one.state_dict(), file)
        file.seek(0)
        assert torch.load(file, weights_only=True).keys() == one.state_dict().keys(), moment
        if moment == "before":
            run = fit(supervised(), one, val=loader(shuffle=False), enable_progress_bar=_shows([one]))
    run.save_checkpoint(tmp_path / "a.ckpt")
    states = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    assert (one.state_key in states) == bool(one.state_dict())


# Where two may not have the same arguments: in what the second differs, or None if there may be but one.
ANOTHER: dict[type[Callback], dict[str, Any] | None] = {
    EarlyStopping: {"mode": "max"},
    GradientClipping: None,
    GradientMonitor: {"depth": 1},
    HealthMonitor: {"checks": ["FL611"]},
    LearningRateScheduler: None,
    NonFiniteGuard: None,
    ProgressBar: None,
    TokenWeightedAccumulation: None,
    WeightEMA: None,
    WeightInitialization: None,
}


@everyone
def test_two_of_a_kind_coexist_or_are_refused(callback):
    """Two that would share a state are refused by name; two observers or probes still change nothing."""

    def two() -> list[Callback]:
        return [callback(**CASES[callback]), callback(**(CASES[callback] | (another or {})))]

    another = ANOTHER.get(callback, {})
    pair = two()
    if another is None:
        what = f"more than one stateful callback of type `{callback.__name__}`|multiple progress bar callbacks"
        with pytest.raises((RuntimeError, MisconfigurationException), match=what):
            trainer(callbacks=pair, enable_progress_bar=_shows(pair))
        return
    module, bare = supervised(), supervised()
    fit(module, *pair, val=loader(shuffle=False), enable_progress_bar=_shows(pair))
    fit(bare, val=loader(shuffle=False))
    stateful = [one.state_key for one in pair if one.state_dict()]
    assert len(set(stateful)) == len(stateful)
    assert callback.role == "actor" or same(weights(module), weights(bare))
    assert run_until("", "automatic", *two()) == left_by_a_bare_run("", "automatic")
