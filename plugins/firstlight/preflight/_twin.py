"""A copy of a module on a Trainer of its own: what is done to it does not reach the run."""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import io
import itertools
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

_STEPS = ("training_step", "validation_step", "forward", "log", "log_dict", "optimizer_step", "configure_model")
_PATCHED = (*_STEPS, "configure_gradient_clipping", "configure_optimizers", "on_after_batch_transfer", "print")


@dataclass(frozen=True)
class Plan:
    """The run to come, as far as experiments must repeat it."""

    max_epochs: int = 1000
    max_steps: int = -1
    num_batches: int = 1
    accumulate: int = 1
    clip_value: float | None = None
    clip_algorithm: str | None = None
    precision: str = "32-true"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    actors: tuple[Callback, ...] = ()  # callbacks that take part in a step: schedules, clipping

    @property
    def steps(self) -> int:
        """Optimizer steps of the planned run."""
        by_epochs = self.max_epochs * self._steps_an_epoch if self.max_epochs > 0 else 10**9
        return min(by_epochs, self.max_steps) if self.max_steps > 0 else by_epochs

    @property
    def epochs(self) -> int:
        """Epochs of the planned run, the last one perhaps not whole."""
        return -(-self.steps // self._steps_an_epoch)

    @property
    def is_finite(self) -> bool:
        """Whether the run has an end."""
        return self.max_epochs > 0 or self.max_steps > 0

    @property
    def _steps_an_epoch(self) -> int:
        return max(1, -(-self.num_batches // self.accumulate))


def twin_of(module: LightningModule) -> LightningModule:
    """Copy ``module``, without its Trainer, its loggers and what others have patched into the instance."""
    twin = copy.deepcopy(module)
    for name in _PATCHED:
        # patches (torch.compile, other tools) stay bound to the original: its weights would be trained
        if name in twin.__dict__ and not isinstance(twin.__dict__[name], torch.nn.Module):
            del twin.__dict__[name]
    for parameter in twin.parameters():
        parameter.grad = None
    quiet: Any = twin
    quiet.log = quiet.log_dict = quiet.print = _nothing
    quiet.configure_callbacks = _no_callbacks
    return twin


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``log``."""


def _no_callbacks() -> list[Callback]:
    return []


def held_by(optimizers: Iterable[Optimizer]) -> set[int]:
    """Return the ids of the tensors that optimizers hold."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


FOREIGN = "configure_optimizers gives the original's parameters even on a copy"


class ForeignError(RuntimeError):
    """A step of a copy would have changed the original."""


def without_dropout(twin: LightningModule) -> None:
    """Switch every dropout of torch off in the step of a copy, whatever mode it is in."""
    step = twin.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        with _NoDropout():
            return step(*args, **kwargs)

    twin.training_step = functools.wraps(step)(training_step)  # type: ignore[method-assign]


class _NoDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout):
            return func(args[0] if args else kwargs["input"], p=0.0, training=False)
        if func is F.scaled_dot_product_attention and "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


class Repeat:
    """A loader that gives batches again and again, ``length`` of them an epoch."""

    def __init__(self, batches: Sequence[Any], length: int) -> None:
        self.batches, self.length = list(batches), length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.length):
            yield copy.deepcopy(self.batches[index % len(self.batches)])


class Stop(Callback):
    """Ends a run after ``steps`` batches."""

    def __init__(self, steps: int) -> None:
        self.steps, self.taken = steps, 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.taken += 1
        if self.taken >= self.steps:
            trainer.should_stop = True


def fit(
    twin: LightningModule,
    plan: Plan,
    batches: Sequence[Any],
    callbacks: Sequence[Callback],
    *,
    val: Sequence[Any] = (),
) -> Trainer:
    """Train ``twin`` on ``batches`` by a quiet Trainer with the settings of the planned run; validate on ``val``."""
    clip: dict[str, Any] = {}
    if plan.clip_value is not None and twin.automatic_optimization:
        clip = {"gradient_clip_val": plan.clip_value, "gradient_clip_algorithm": plan.clip_algorithm}
    actors = copy.deepcopy(list(plan.actors))
    with hushed():
        trainer = Trainer(
            strategy=SingleDeviceStrategy(device=plan.device, accelerator=None),
            accelerator="cpu" if plan.device.type == "cpu" else "auto",
            precision=plan.precision,  # type: ignore[arg-type]
            max_epochs=plan.max_epochs,
            max_steps=plan.max_steps,
            accumulate_grad_batches=plan.accumulate if twin.automatic_optimization else 1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=len(val),
            callbacks=[*actors, *callbacks],
            **clip,
        )
        # what is switched on from outside, for every Trainer, is for the run
        known = {id(callback) for callback in (*actors, *callbacks)}
        trainer.callbacks = [c for c in trainer.callbacks if id(c) in known]  # type: ignore[attr-defined]
        with writes_nothing():
            trainer.fit(twin, Repeat(batches, plan.num_batches), Repeat(val, len(val)) if val else None)
    return trainer


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Lightning's advice and log lines are for the run, not for experiments on a copy."""
    # Of the two packages the one that was imported last writes the log lines of both.
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One process asks while the others wait: code that gathers over ranks must not wait for them.

    Code that looks whether there are ranks finds none; code that does not look gathers over this rank only.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return
    asked, world = distributed.is_initialized, distributed.group.WORLD
    me = distributed.get_rank()
    own = distributed.new_group([me], backend="gloo", use_local_synchronization=True)  # asks nobody else
    distributed.group.WORLD = own
    distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        distributed.is_initialized, distributed.group.WORLD = asked, world
        distributed.destroy_process_group(own)


@contextlib.contextmanager
def writes_nothing() -> Iterator[None]:
    """Send what this thread opens for writing, or saves with torch, to files that vanish."""
    opened, saved, thread, here = builtins.open, torch.save, threading.get_ident(), os.getcwd()  # noqa: PTH109
    # Compilers keep what they built in folders of their own, and read it back by name.
    triton = os.path.expanduser("~/.triton")  # noqa: PTH111
    caches = tuple(os.path.realpath(path) for path in (tempfile.gettempdir() + "/torchinductor_", triton, "/dev/"))

    with tempfile.TemporaryDirectory(prefix="firstlight-") as folder:
        counter = itertools.count()

        def elsewhere(path: Any) -> Any:
            outside = isinstance(path, (str, os.PathLike)) and threading.get_ident() == thread
            outside = outside and not os.path.realpath(path).startswith(caches)
            return os.path.join(folder, str(next(counter))) if outside else path  # noqa: PTH118

        def guarded_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return opened(elsewhere(file) if set(mode) & set("wax") else file, mode, *args, **kwargs)

        def guarded_save(value: Any, f: Any, *args: Any, **kwargs: Any) -> None:
            saved(value, elsewhere(f), *args, **kwargs)

        builtins.open = io.open = guarded_open
        torch.save = guarded_save  # type: ignore[assignment]
        try:
            yield
        finally:
            builtins.open = io.open = opened
            torch.save = saved
            os.chdir(here)  # a step may have gone elsewhere
