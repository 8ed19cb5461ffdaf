"""The law of each role, over every callback that the package lists, on real Trainers.

Shuffled data, dropout, batch norm and persistent workers: each draws random numbers or keeps state, and each would
show a callback that touches what it must not.
"""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from firstlight import callbacks, recovery
from firstlight.callbacks import (
    BatchMixing,
    EarlyStopping,
    GeneratedSamples,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    HealthMonitor,
    LearningRateScheduler,
    MaxNorm,
    OverfitOneBatch,
    PredictionSamples,
    Preflight,
    ProgressBar,
    RunManifest,
    TokenWeightedAccumulation,
    WeightEMA,
    WeightInitialization,
)
from firstlight.mixing import MixUp
from firstlight.recovery import ExactResume, GracefulStop, NonFiniteGuard, RankWatch
from firstlight.schedules import Constant, WarmupCosine
from helpers import (
    Plain,
    ResumableLoader,
    SaveEveryStep,
    fit,
    fp16_on_the_cpu,
    loader,
    network,
    same,
    supervised,
    weights,
)

# One row a callback: the arguments that its contract is tested with. An actor's second row makes it act on nothing.
CASES: dict[type[Callback], dict[str, Any]] = {
    BatchMixing: {"mixings": [MixUp(0.4)], "num_classes": 4, "p": 0.7},
    EarlyStopping: {"monitor": "val/loss", "patience": 100},
    ExactResume: {},
    GeneratedSamples: {"num_samples": 4},
    GracefulStop: {"dirpath": "stops"},  # nothing tells it to stop
    GradientClipping: {"percentile": 50.0},
    GradientMonitor: {},
    HealthMonitor: {"budget": 0.5},
    LearningRateScheduler: {"schedule": WarmupCosine(warmup="4ba")},
    GradientNoise: {"eta": 0.1},
    MaxNorm: {"limit": 0.8},
    NonFiniteGuard: {"policy": "rollback", "snapshot_every_n_steps": 3},
    OverfitOneBatch: {"on_fail": "warn"},
    PredictionSamples: {},
    Preflight: {"fail_on": "never"},
    ProgressBar: {},
    RankWatch: {},
    RunManifest: {},
    TokenWeightedAccumulation: {"count": lambda batch: (batch[1] > 0).sum()},  # unequal numbers
    WeightEMA: {"decay": 0.7},
    WeightInitialization: {"seed": 5},
}
NEUTRAL: dict[type[Callback], dict[str, Any]] = {
    EarlyStopping: {"monitor": "val/loss", "patience": 100},
    ExactResume: {},
    GracefulStop: {"dirpath": "stops"},  # nothing tells it to stop
    GradientClipping: {"max_norm": 1e9},
    GradientNoise: {"eta": 0.0},
    LearningRateScheduler: {"schedule": Constant()},
    MaxNorm: {"limit": 1e9},
    NonFiniteGuard: {},
    TokenWeightedAccumulation: {},  # batches of one size
}


def listed() -> list[type[Callback]]:
    found = [getattr(room, name) for room in (callbacks, recovery) for name in room.__all__]
    return [item for item in found if isinstance(item, type) and issubclass(item, Callback)]


def of_role(role: str) -> list[type[Callback]]:
    return [cls for cls in listed() if cls.role == role]


def test_every_callback_has_a_role_and_a_case():
    assert {cls.role for cls in listed()} == {"observer", "actor", "probe"}
    assert set(listed()) == set(CASES)


class Noise(nn.Module):
    """Draws from the global generator at every step, so that a probe that steps a copy must put it back."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) + 0.01 * random.random() + 0.01 * float(np.random.rand())


CLIP = 1e9  # seen by monitors, touching nothing


class TwoOptimizers(Plain):
    """Manual optimization: two halves, each with an optimizer, stepping at different rates."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(Noise(), *network()))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizers[0].step()
        if batch_idx % 2:
            optimizers[1].step()
        return {"loss": loss.detach()}

    def configure_optimizers(self):
        halves = self.net[:3], self.net[3:]
        return [torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9) for half in halves]


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 3},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "16-mixed": {"plugins": lambda: [fp16_on_the_cpu(init_scale=2.0**24, growth_interval=4)]},  # begins with overflow
    "manual": {"module": TwoOptimizers, "gradient_clip_val": None},
}


def train(tmp_path, *callbacks: Callback, workers: int = 0, **kwargs: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return what a run leaves: weights and buffers, optimizer state, random numbers; and the batches it saw."""
    seen: list[Any] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((batch[1].tolist(), float(outputs["loss"])))

    torch.manual_seed(1)
    make = kwargs.pop("module", lambda: supervised(model=nn.Sequential(Noise(), *network())))
    module = make()
    logger = CSVLogger(tmp_path, name="", version="")
    settings = {"enable_progress_bar": any(isinstance(c, ProgressBar) for c in callbacks), "logger": logger}
    if "plugins" in kwargs:
        kwargs["plugins"] = kwargs["plugins"]()  # a scaler has a state of its own
    if not any(isinstance(c, GradientClipping) for c in callbacks):
        settings["gradient_clip_val"] = CLIP
    run = fit(
        module,
        *callbacks,
        Recorder(),
        **({"data": loader(workers=workers), "val": loader(shuffle=False)} | settings | kwargs),
    )
    left = weights(module)
    for number, optimizer in enumerate(run.optimizers):
        for key, value in optimizer.state_dict()["state"].items():
            left[f"momentum/{number}/{key}"] = value["momentum_buffer"]
    left["torch"] = torch.random.get_rng_state()
    left["numpy"] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))
    left["python"] = torch.tensor(random.getstate()[1])
    return left, seen


@functools.cache
def alone_in(folder: Path, mode: str, workers: int) -> tuple[dict[str, Any], list[Any]]:
    """Return what the bare run leaves; the same for every callback that is compared with it."""
    return train(folder / f"{mode}-{workers}", workers=workers, **MODES[mode])


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return functools.partial(alone_in, tmp_path_factory.mktemp("bare"))


@pytest.mark.filterwarnings("ignore:(Generated|Prediction)Samples stands aside")  # of such a module
@pytest.mark.parametrize(("mode", "workers"), [*((mode, 0) for mode in MODES), ("plain", 2)])
@pytest.mark.parametrize("callback", of_role("observer") + of_role("probe"), ids=lambda cls: cls.__name__)
def test_observers_and_probes_change_nothing(callback, mode, workers, bare, tmp_path):
    """Training with it is bit for bit the training without it: weights, buffers, momentum, data and random numbers."""
    alone, batches_alone = bare(mode, workers)
    watched, batches_watched = train(tmp_path, callback(**CASES[callback]), workers=workers, **MODES[mode])
    assert batches_alone == batches_watched
    assert same(alone, watched)


class Meddler(Callback):
    """Draws one random number: the smallest thing that an observer may not do."""

    def on_train_batch_start(self, *args):
        torch.rand(())


def test_the_law_catches_a_callback_that_draws_one_random_number(tmp_path):
    assert not same(train(tmp_path / "a", workers=0)[0], train(tmp_path / "b", Meddler(), workers=0)[0])


@pytest.mark.filterwarnings(
    "ignore:TokenWeightedAccumulation stands aside under manual", "ignore:NonFiniteGuard stands aside"
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("callback", list(NEUTRAL), ids=lambda cls: cls.__name__)
def test_actors_change_only_what_they_name(callback, mode, bare, tmp_path):
    """An actor that is told to act on nothing is an observer."""
    alone, batches_alone = bare(mode, 0)
    acted, batches_acted = train(tmp_path, callback(**NEUTRAL[callback]), **MODES[mode])
    assert batches_alone == batches_acted
    assert same(alone, acted)


@pytest.mark.parametrize("mode", MODES)
def test_an_average_leaves_training_alone(mode, bare, tmp_path):
    """Batches, losses, momentum and random numbers are what they were; only the weights at the end are averages."""
    alone, batches_alone = bare(mode, 0)
    acted, batches_acted = train(tmp_path, WeightEMA(0.9), **MODES[mode])
    assert batches_alone == batches_acted
    untouched = [key for key in alone if not key.startswith(("model.", "net."))]
    assert same({key: alone[key] for key in untouched}, {key: acted[key] for key in untouched})
    assert not same(alone, acted)


def test_weight_initialization_changes_weights_only(tmp_path):
    """The batches and every other random number stay what they were."""
    alone, batches_alone = train(tmp_path / "alone", workers=0)
    acted, batches_acted = train(tmp_path / "acted", WeightInitialization(seed=5), workers=0)
    assert [labels for labels, _ in batches_alone] == [labels for labels, _ in batches_acted]
    assert not torch.equal(alone["model.1.weight"], acted["model.1.weight"])
    assert all(torch.equal(alone[key], acted[key]) for key in ("torch", "numpy", "python"))


@pytest.mark.filterwarnings("ignore:(Generated|Prediction)Samples stands aside")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("callback", of_role("observer") + of_role("probe"), ids=lambda cls: cls.__name__)
def test_observers_and_probes_change_nothing_across_a_resume(callback, accumulate, tmp_path):
    """A run stopped mid-epoch with it and resumed with it is that run, stopped and resumed, without it."""

    def stopped_and_resumed(folder: Path, *callbacks: type[Callback]) -> Any:
        settings = {"accumulate_grad_batches": accumulate, "max_epochs": 2}
        made = [[cls(**CASES[cls]) for cls in callbacks] for _ in range(2)]
        train(folder / "first", *made[0], SaveEveryStep(folder), data=ResumableLoader(), **settings)
        return train(folder / "second", *made[1], data=ResumableLoader(), ckpt=folder / "02.ckpt", **settings)

    (tmp_path / "alone").mkdir()
    (tmp_path / "watched").mkdir()
    alone, batches_alone = stopped_and_resumed(tmp_path / "alone")
    watched, batches_watched = stopped_and_resumed(tmp_path / "watched", callback)
    assert batches_alone == batches_watched
    assert len(batches_alone) == 2 * len(ResumableLoader()) - 2 * accumulate
    assert same(alone, watched)


@pytest.mark.filterwarnings("ignore:this resume is not exact. the checkpoint was written before a validation")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("callback", of_role("actor"), ids=lambda cls: cls.__name__)
def test_actors_resumed_equal_unbroken(callback, accumulate, tmp_path):
    """Stopped after any step, mid-epoch included, and resumed is the unbroken run, where the data goes on."""

    def run(ckpt: Any = None, *more: Callback) -> Any:
        # no dropout: Lightning does not save random numbers
        module = supervised(model=network(dropout=0.0))
        data, val = ResumableLoader(), loader(shuffle=False)
        fit(module, callback(**CASES[callback]), *more, data=data, val=val, ckpt=ckpt, **settings)
        return weights(module)

    settings = {"accumulate_grad_batches": accumulate, "max_epochs": 2}
    whole = run(None, SaveEveryStep(tmp_path))
    stops = sorted(tmp_path.glob("*.ckpt"))
    assert len(stops) == 2 * math.ceil(len(ResumableLoader()) / accumulate)
    for stop in stops:
        assert same(whole, run(stop)), stop.name
