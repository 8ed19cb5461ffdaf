"""What callbacks cost, beside the bare Trainer and beside what one uses without them.

Every fit is a real one, with a CSV logger that writes every 50 steps and a validation of two batches after that. The
fits of a table line run in one process in turn, a few steps of each at a time (``_race.py``); a cost is what a step
takes with the callback less what the bare step of the same turn takes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as lightning_callbacks
import torch
import torch.nn.functional as F
from _race import Turns, per_step, race
from _table import Result, compared, pairs, report, seconds
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn

import firstlight.callbacks as ours
from firstlight.mixing import MixUp
from firstlight.schedules import WarmupCosine

# ------------------------------------------------------------------------------------------------------------- fits


class Tensors(nn.Module):
    """``number`` parameters of 64 values in blocks of ten; little else to do than what each tensor costs."""

    def __init__(self, number: int) -> None:
        super().__init__()
        blocks = (nn.ParameterList(torch.randn(8, 8) for _ in range(10)) for _ in range(number // 10))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.stack(list(self.parameters())).mean(0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 8))


def cnn() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    sizes = ((3, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
    return nn.Sequential(*(block(*size) for size in sizes), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 8))


class Task(LightningModule):
    """Classification as one writes it."""

    def __init__(self, net: nn.Module, *, scheduled: bool) -> None:
        super().__init__()
        self.net = net
        self.scheduled = scheduled

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        output = self.net(batch[0])
        self.log("val/loss", F.cross_entropy(output, batch[1]))
        return {"output": output, "target": batch[1]}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)
        if not self.scheduled:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Batches:
    """The same batch again and again: loading data is not what is measured."""

    def __init__(self, batch: Any, number: int) -> None:
        self.batch = batch
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * self.number)


@dataclass(frozen=True)
class Net:
    """What is trained: ``periods`` times ``period`` steps, the first period to warm up, ``turn`` steps at a time.

    Each period ends with an entry in the log and a validation.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    turn: int
    periods: int
    period: int = 50

    def sized(self, *, tiny: bool) -> Net:
        """Return the same with so few steps that it shows only whether it runs."""
        return replace(self, turn=1, periods=3, period=4) if tiny else self


@dataclass(frozen=True)
class Entry:
    """A fit: the callbacks it has, and what else is not as in the bare one."""

    callbacks: Callable[[], list[Callback]] = list
    trainer: dict[str, Any] = field(default_factory=dict)
    scheduled: bool = False


def fit(net: Net, entry: Entry, folder: Path, first: Callback) -> None:
    torch.manual_seed(0)
    module = Task(net.make(), scheduled=entry.scheduled)
    batch = torch.randn(net.shape), torch.randint(8, net.shape[:1])
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": CSVLogger(folder),
        "max_epochs": 1,
        "log_every_n_steps": net.period,
        "val_check_interval": net.period,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(callbacks=[first, *entry.callbacks()], **(settings | entry.trainer))
    trainer.fit(module, Batches(batch, net.period * net.periods), Batches(batch, 2))


Turned = dict[str, list[float]]


def fits(net: Net, entries: dict[str, Entry]) -> Turned:
    """Race the entries on ``net``."""

    def one(entry: Entry, folder: Path, turns: Turns) -> None:
        fit(net, entry, folder, turns)

    gc.collect()
    with tempfile.TemporaryDirectory() as root, Path(os.devnull).open("w") as nowhere:
        runs = {name: partial(one, entry, Path(root) / str(n)) for n, (name, entry) in enumerate(entries.items())}
        with contextlib.redirect_stdout(nowhere):  # progress bars
            return race(runs, length=net.turn)


def step(net: Net, turned: Turned, name: str) -> float:
    """Return the seconds of a step of one of the fits."""
    return per_step(turned[name], length=net.turn, period=net.period)


def cost(net: Net, turned: Turned, name: str, bare: str = "bare") -> float:
    """Return the seconds that a step takes longer than in the bare fit."""
    longer = [a - b for a, b in zip(turned[name], turned[bare], strict=True)]
    return per_step(longer, length=net.turn, period=net.period)


# ---------------------------------------------------------------------------------------------------------- entries


class GradNorm(Callback):
    """What the documentation of Lightning's ``grad_norm`` shows."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class Watch(Callback):
    """``wandb.watch`` of gradients, as often as the logger writes."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
        self.run = wandb.init(mode="offline", dir=trainer.logger.save_dir, settings=settings)
        self.run.watch(pl_module, log="gradients", log_freq=trainer.log_every_n_steps)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.run.unwatch(pl_module)
        self.run.finish()


ENTRIES: dict[str, Entry] = {
    "bare": Entry(),
    "default observers": Entry(lambda: [ours.GradientMonitor(), ours.PredictionSamples(), ours.RunManifest()]),
    "GradientMonitor": Entry(lambda: [ours.GradientMonitor()]),
    "grad_norm + log_dict": Entry(lambda: [GradNorm()]),
    "wandb.watch": Entry(lambda: [Watch()]),
    "WeightEMA": Entry(lambda: [ours.WeightEMA()]),
    "EMAWeightAveraging": Entry(lambda: [lightning_callbacks.EMAWeightAveraging()]),
    "LearningRateScheduler": Entry(lambda: [ours.LearningRateScheduler(WarmupCosine())]),
    "LambdaLR + LearningRateMonitor": Entry(lambda: [lightning_callbacks.LearningRateMonitor()], scheduled=True),
    "GradientClipping": Entry(lambda: [ours.GradientClipping(1.0)]),
    "gradient_clip_val": Entry(trainer={"gradient_clip_val": 1.0}),
    "EarlyStopping": Entry(lambda: [ours.EarlyStopping("val/loss", patience=1000)]),
    "Lightning's EarlyStopping": Entry(lambda: [lightning_callbacks.EarlyStopping("val/loss", patience=1000)]),
    "ProgressBar": Entry(lambda: [ours.ProgressBar(style="bar")], {"enable_progress_bar": True}),
    "TQDMProgressBar": Entry(lambda: [lightning_callbacks.TQDMProgressBar()], {"enable_progress_bar": True}),
    "MaxNorm": Entry(lambda: [ours.MaxNorm(2.0)]),
    "GradientNoise": Entry(lambda: [ours.GradientNoise()]),
    # Half the default budget: of two fits in turn each has half of the time that goes by.
    "HealthMonitor": Entry(lambda: [ours.HealthMonitor(budget=0.01)]),
    "BatchMixing": Entry(lambda: [ours.BatchMixing([MixUp(0.4)], num_classes=8)]),
}


# ------------------------------------------------------------------------------------------------------------- rows

MLP = Net("MLP", mlp, (32, 64), turn=10, periods=9)
CNN = Net("CNN", cnn, (16, 3, 16, 16), turn=1, periods=5)
OBSERVERS_MAY = 1.03  # times the bare step
THIRD = 1 / 3


def tensors(number: int, *, period: int = 50, periods: int = 2) -> Net:
    return Net(f"{number} tensors", partial(Tensors, number), (8, 8), turn=1, periods=periods, period=period)


def beside_bare(net: Net, turned: Turned, name: str, most: float | None = None) -> Result:
    """A line of whole steps."""
    bare, loaded = step(net, turned, "bare"), step(net, turned, name)
    return compared(f"{name}, {net.name}: step", "bare", loaded, bare, 1 + cost(net, turned, name) / bare, most=most)


def beside(net: Net, turned: Turned, name: str, peer: str, most: float | None = None) -> Result:
    """A line of costs. Without a target there is no ratio of costs that are within the noise."""
    mine, other = cost(net, turned, name), cost(net, turned, peer)
    noise = step(net, turned, "bare") / 100
    ratio = mine / other if other > 0 else float("inf")
    line = compared(f"{name}, {net.name}: cost", peer, mine, other, ratio, most=most)
    return line if most is not None or min(mine, other) > noise else replace(line, ratio=None)


PEERS = {
    "GradientMonitor": ("grad_norm + log_dict", "wandb.watch"),
    "WeightEMA": ("EMAWeightAveraging",),
    "LearningRateScheduler": ("LambdaLR + LearningRateMonitor",),
    "GradientClipping": ("gradient_clip_val",),
    "EarlyStopping": ("Lightning's EarlyStopping",),
    "ProgressBar": ("TQDMProgressBar",),
}


def compared_on(net: Net, names: Iterable[str], *, tiny: bool) -> tuple[Net, Turned]:
    chosen = {name: ENTRIES[name] for name in names if not (tiny and name == "wandb.watch")}  # which takes seconds
    net = net.sized(tiny=tiny)
    return net, fits(net, chosen)


def peers_on(net: Net, turned: Turned, targets: dict[tuple[str, str], float]) -> Iterator[Result]:
    """Lines of all parts and peers that ran."""
    for name, peers in PEERS.items():
        for peer in peers:
            if {name, peer} <= turned.keys():
                yield beside(net, turned, name, peer, targets.get((name, peer)))


GRADIENTS = {("GradientMonitor", "grad_norm + log_dict"): THIRD}
AVERAGES = {("WeightEMA", "EMAWeightAveraging"): THIRD}


OTHERS = tuple(name for name in ENTRIES if name != "HealthMonitor")  # which times itself, and has a row of its own


def small_network(*, tiny: bool) -> Iterator[Result]:
    net, turned = compared_on(MLP, OTHERS, tiny=tiny)
    for name in ("default observers", "MaxNorm", "GradientNoise", "BatchMixing"):
        yield beside_bare(net, turned, name)
    yield from peers_on(net, turned, {})


def convolutions(*, tiny: bool) -> Iterator[Result]:
    yield from peers_on(*compared_on(CNN, OTHERS, tiny=tiny), AVERAGES)


def whole_steps(*, tiny: bool) -> Iterator[Result]:
    """A few hundredths of a step: only two fits at a time, and many steps."""
    long = replace(CNN, periods=CNN.periods * 5)
    yield beside_bare(*compared_on(long, ("bare", "default observers"), tiny=tiny), "default observers", OBSERVERS_MAY)
    for net, most in ((replace(MLP, periods=MLP.periods * 10), 1.05), (long, 1.02)):
        yield beside_bare(*compared_on(net, ("bare", "HealthMonitor"), tiny=tiny), "HealthMonitor", most)


def many_tensors(*, tiny: bool) -> Iterator[Result]:
    for number, targets in ((200, GRADIENTS), (1000, GRADIENTS | AVERAGES)):
        names = ("bare", "GradientMonitor", *PEERS["GradientMonitor"], "WeightEMA", "EMAWeightAveraging")
        net = tensors(number // 10 if tiny else number)
        yield from peers_on(*compared_on(net, names, tiny=tiny), targets)


class Lerp(Callback):
    """Times each update of a WeightEMA beside the bare operation on lists at hand, in turn, in a real fit."""

    def __init__(self, average: Callback, decay: float) -> None:
        self.average = average
        self.weight = 1.0 - decay
        self.times: list[tuple[float, float]] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.average.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.average.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average.on_train_start(trainer, pl_module)
        self.live = [value for value in pl_module.state_dict().values() if value.is_floating_point()]
        self.copies = [value.clone() for value in self.live]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        def ours() -> None:
            self.average.on_train_batch_end(trainer, pl_module, *args)

        def bare() -> None:
            torch._foreach_lerp_(self.copies, self.live, self.weight)

        # The second to go finds the weights in the cache.
        first, second = (ours, bare) if trainer.global_step % 2 else (bare, ours)
        one, other = pairs(first, second, number=1, warmup=0)[:2]
        self.times.append((one, other) if trainer.global_step % 2 else (other, one))


def update(net: Net) -> Result:
    watch = Lerp(ours.WeightEMA(decay=0.999), decay=0.999)
    with tempfile.TemporaryDirectory() as folder:
        fit(net, Entry(), Path(folder), watch)
    mine, other = (statistics.median(column) for column in zip(*watch.times[net.period :], strict=True))
    return compared(f"WeightEMA, {net.name}: update", "foreach lerp", mine, other, mine / other, most=1.2)


def averages(*, tiny: bool) -> Iterator[Result]:
    for net in (CNN, tensors(1000)):
        yield update(net.sized(tiny=tiny))


def observers() -> dict[str, Entry]:
    """Every observer of the room, with WeightEMA."""
    entries = {"bare": Entry()}
    for name in ours.__all__:
        cls = getattr(ours, name)
        if getattr(cls, "role", None) == "observer" or name == "WeightEMA":
            bar = {"enable_progress_bar": True} if issubclass(cls, lightning_callbacks.ProgressBar) else {}
            entries[name] = Entry(lambda cls=cls: [cls()], bar)
    return entries


def growth(*, tiny: bool) -> Iterator[Result]:
    """Cost a tensor: with the last ten times as many no more than twice what it was.

    What is below a tenth of the bare step counts as that tenth: it may be noise, and the bare step is linear.
    """
    entries = observers()
    sizes = (10, 100) if tiny else (10, 100, 1000, 10_000)
    costs: dict[str, list[float]] = {name: [] for name in entries}
    for size in sizes:
        net = tensors(size, period=10, periods=4).sized(tiny=tiny)
        turned = fits(net, entries)
        for name in entries:
            whole = step(net, turned, name) if name == "bare" else cost(net, turned, name)
            costs[name].append(whole / size)
    bare = costs.pop("bare")
    for name, of in costs.items():
        least = [max(value, whole / 10) for value, whole in zip(of, bare, strict=True)]
        ratio = least[-1] / least[-2]
        shown = " / ".join(seconds(value) for value in of)
        yield Result(
            f"{name}: cost a tensor, of {' / '.join(map(str, sizes))}", "", shown, "", ratio, "≤ 2", ratio <= 2
        )


def manifest(*, tiny: bool) -> Iterator[Result]:
    """What the record of a run costs, once."""
    times: list[float] = []

    class Once(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            began = time.perf_counter()
            ours.RunManifest().on_fit_start(trainer, pl_module)
            times.append(time.perf_counter() - began)

    for _ in range(1 if tiny else 5):
        with tempfile.TemporaryDirectory() as folder:
            fit(MLP.sized(tiny=True), Entry(), Path(folder), Once())
    yield Result("RunManifest, once a run, wall time", "", seconds(statistics.median(times)), "", None, "", None)


ROWS = (small_network, convolutions, whole_steps, many_tensors, averages, growth, manifest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="run the rows whose function has this in its name")
    parser.add_argument(
        "--tiny", action="store_true", help="a few steps, to see whether it runs; the figures mean nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    report({rows.__name__: partial(rows, tiny=options.tiny) for rows in ROWS}, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
