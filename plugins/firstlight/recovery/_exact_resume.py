"""ExactResume: a run that was stopped and goes on is the run that was never stopped."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from firstlight._shadows import Shadows
from firstlight.recovery._entered import entered
from firstlight.recovery._epoch_values import logged_values, metric_states, set_logged_values, set_metric_states
from firstlight.recovery._random_state import random_state, set_random_state
from firstlight.recovery._tracked_loader import TrackedLoader

_KEY = "firstlight_exact_resume"
_VERSION = 1


@final
class ExactResume(Callback):
    """Save what a checkpoint lacks, so that the resumed run equals the unbroken one bit for bit.

    Lightning saves weights, optimizers, schedulers, callbacks and counters. This adds, for each rank: the random
    numbers of python, numpy and torch, those of the loader's workers, the place in the shuffled data, the sums of
    the epoch that ``self.log`` and metrics keep, and gradients where a checkpoint falls into an accumulation window.
    After any step, inside an epoch or at its end, the run goes on with the batch, the dropout mask and the
    augmentation that would have come next. On a CPU that is exact; on a GPU where the kernels are deterministic.

    It works with a plain ``DataLoader(shuffle=True)``, any sampler, and any worker count, and changes nothing that a
    loader yields: it remembers the random numbers that an epoch's order was drawn from, draws it again, and passes
    over the indices that were trained on without loading them (fewer than ``num_workers`` batches are loaded twice).
    A stream (``IterableDataset``) is read again up to its place, and a loader that the data module makes anew for every
    epoch (``reload_dataloaders_every_n_epochs=1``) is made again. A loader that has a ``state_dict`` of its own, such
    as torchdata's ``StatefulDataLoader``, gets that back at the end of an epoch too, where Lightning drops it; what its
    workers draw from their global generators inside an epoch it does not keep.

    When a resume cannot be exact, one warning says what will differ: another number of ranks, batch size,
    accumulation, number of samples or workers; a checkpoint from inside a step; data that draws from the global
    generators of the main process while it streams.

    Role: actor; it acts on a resume alone. Without one, training is what it was to the bit.
    Reads: random numbers, the train loaders, epoch sums. Writes: one entry of the checkpoint, plain values; on a
    resume, all of these. Logs: nothing.

    Under DDP each rank's part is gathered when a checkpoint is written, which every rank does together; not at an
    exception, where the others may be elsewhere. It costs no wait for the device; each worker takes 0.1 ms a batch.
    """

    role: ClassVar[str] = "actor"
    in_step: ClassVar[bool] = False  # experiments on copies go without it

    def __init__(self) -> None:
        self._shadows = Shadows()
        self._stateful_for_now = Shadows()
        self._forget()

    def _forget(self) -> None:
        self._loaders: list[TrackedLoader] = []
        self._own_state: list[DataLoader[Any]] = []  # they save their place themselves, as torchdata's do
        self._unseen: list[str] = []  # loaders that nobody can enter in the middle
        self._resumed: dict[str, Any] | None = None  # this rank's part of the checkpoint, until training starts
        self._ranks_then = 1
        self._differs: list[str] = []
        self._random: dict[str, Any] | None = None
        self._inside = False  # the first batch after a resume lies inside an epoch
        self._ending = False
        self._active = False
        self._began = False
        self._anew = False  # the epoch that is due has loaders of its own

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._lift()
        self._forget()
        if stage != "fit" or next(c for c in trainer.callbacks if isinstance(c, ExactResume)) is not self:  # type: ignore[attr-defined]
            return
        self._active = True
        process = trainer.strategy.process_dataloader

        def process_dataloader(loader: object) -> object:
            processed = process(loader)
            if trainer.training:
                self._track(trainer, processed)
            return processed

        self._shadows.put(trainer.strategy, "process_dataloader", process_dataloader)

    def _track(self, trainer: Trainer, loader: Any) -> None:
        if callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None)):
            if isinstance(loader, DataLoader) and not self._began:  # those of later epochs have nothing to restore
                self._own_state.append(loader)
            return  # Lightning saves it
        if not isinstance(loader, DataLoader):
            self._unseen.append(type(loader).__qualname__)
            return
        # Those that this one comes to replace, if it is not the run's first.
        combined = trainer.fit_loop._combined_loader
        replaced = [id(other) for other in combined.flattened] if combined else []
        for tracked in [one for one in self._loaders if id(one.loader) in replaced]:
            tracked.let_go()
            self._loaders.remove(tracked)
        states = self._resumed["loaders"] if self._resumed is not None else []
        every = getattr(trainer, "reload_dataloaders_every_n_epochs", 0)  # an attribute that has no type
        if states and every > 1:
            self._differs.append(
                f"loaders are made anew every {every} epochs (reload_dataloaders_every_n_epochs), counted from the "
                "resume on: the data's order"
            )
            states = []
        elif states and every and states[0]["over"]:
            self._anew, states = True, []
        enter = states[len(self._loaders)] if len(self._loaders) < len(states) else None
        if enter is not None:
            ranks = self._ranks_then, trainer.world_size
            enter, differs = entered(loader, enter, ranks=ranks, trainer=trainer)
            self._differs += differs
        if self._resumed is not None and not trainer.fit_loop._combined_loader_states_to_load:
            # Lightning warns of a loader that has none of these. It goes on exactly without.
            self._stateful_for_now.put(loader, "state_dict", lambda: {})  # noqa: PIE807, a builtin takes no mark
            self._stateful_for_now.put(loader, "load_state_dict", lambda _: None)
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        tracked = TrackedLoader(loader, lambda: progress.current.processed, enter, self._settle, anew=self._anew)
        tracked.ready = self._began
        self._loaders.append(tracked)

    @property
    def differs(self) -> tuple[str, ...]:
        """Why this resume is not exact, as far as is known; empty where it is, and where nothing was resumed."""
        return tuple(dict.fromkeys(self._differs))

    def sample_indices(self, batch_idx: int) -> list[Any]:
        """Return the indices of the samples in a batch of this epoch, of each loader; empty where nobody knows them."""
        return [
            loader.recent[batch_idx] for loader in self._loaders if batch_idx in loader.recent and not loader.streams
        ]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        saved = checkpoint.get(_KEY)
        if saved is None:
            self._differs.append("the checkpoint was written without ExactResume: random numbers and the data's order")
            return
        self._ranks_then = saved["world_size"]
        parts = saved["ranks"]
        self._resumed = parts[min(trainer.global_rank, len(parts) - 1)]
        if len(parts) < self._ranks_then:
            self._differs.append("the checkpoint was written at an exception, by rank 0 alone: what other ranks draw")
        elif trainer.global_rank >= len(parts):
            self._differs.append("a rank that is new draws what another one draws")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        resumed = self._resumed
        loaded = False
        if resumed is not None:
            progress: Any = trainer.fit_loop.epoch_progress.current
            self._inside = progress.started > progress.processed
            self._differs += [*_changed_windows(trainer, resumed), *resumed["differs"]]
            loaded = self._load_what_was_dropped(trainer)
            self._put_back(trainer, pl_module, resumed)
        if self.differs:
            rank_zero_warn(f"this resume is not exact: {'; '.join(self.differs)}")
        self._resumed = None
        self._began = True
        for loader in self._loaders:
            loader.ready = True
        # A loader without a length is asked for its first batch before training starts.
        early = [loader for loader in self._loaders if loader.early]
        for loader in early:
            loader.begin_again()
        if early or loaded:
            fetcher = trainer.fit_loop._data_fetcher
            assert fetcher is not None
            iter(fetcher)

    def _load_what_was_dropped(self, trainer: Trainer) -> bool:
        """Load the states of loaders that have one, which Lightning does inside an epoch but not at its end."""
        loop = trainer.fit_loop
        states, combined = loop._combined_loader_states_to_load, loop._combined_loader
        if self._inside or not states or combined is None:
            return False
        combined._load_state_dicts(states)
        loop._combined_loader_states_to_load = []
        for loader in self._own_state:
            iter(loader)  # torchdata's takes the state in now: that of the epoch which is over
            if not loader.persistent_workers:
                loader._iterator = None
        return True

    def _put_back(self, trainer: Trainer, pl_module: LightningModule, saved: dict[str, Any]) -> None:
        if self._inside:  # else Lightning has closed the epoch, and its sums with it
            set_logged_values(trainer, pl_module, saved["logged"])
            set_metric_states(pl_module, saved["metrics"])
        metrics = {name: value.to(pl_module.device) for name, value in saved["callback_metrics"].items()}
        trainer._logger_connector._callback_metrics.update(metrics)
        for name, gradient in saved["gradients"].items():
            parameter = pl_module.get_parameter(name)
            parameter.grad = gradient.to(parameter.device)
        set_random_state(saved["random"])
        self._random = None if saved["validates"] else saved["random"]

    def _settle(self) -> None:
        """Put random numbers back once more: Lightning may have begun to iterate validation data, for its counters."""
        if self._random is not None:
            set_random_state(self._random)
        self._random = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._inside = False
        for loader in self._loaders:
            loader.expect()
        self._random = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._inside:
            self._inside = False
            # Lightning takes it for the first of an epoch, which would clear the sums.
            trainer._logger_connector._first_loop_iter = False
        self._stateful_for_now.lift()
        self._anew = False
        for loader in self._loaders:
            loader.again = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or not self._active:
            return
        part = self._part(trainer, pl_module)
        parts: list[Any] = [part]
        if trainer.world_size > 1 and not self._ending:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, part)
        checkpoint[_KEY] = {"version": _VERSION, "world_size": trainer.world_size, "ranks": parts}

    def _part(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        loop = trainer.fit_loop
        batch: Any = loop.epoch_loop.batch_progress.current
        epoch: Any = loop.epoch_progress.current
        over = epoch.started == epoch.processed or loop.epoch_loop._num_ready_batches_reached()
        differs = [f"{name} cannot be entered in the middle: the data's order" for name in self._unseen]
        if batch.ready != batch.processed:
            differs.append("the checkpoint was written inside a step: what that step had drawn and BatchNorm had seen")
        fetcher = loop._data_fetcher
        validates = trainer.training and fetcher is not None and epoch.started > epoch.processed
        validates = validates and loop.epoch_loop._should_check_val_fx(fetcher)  # type: ignore[arg-type]
        if validates:
            differs.append("the checkpoint was written before a validation, which Lightning leaves out on a resume")
        in_window = not over and pl_module.automatic_optimization and loop.epoch_loop._should_accumulate()
        named = pl_module.named_parameters() if in_window and trainer.world_size == 1 else ()
        if in_window and trainer.world_size > 1:
            differs.append("the checkpoint was written inside an accumulation window: gradients of its first batches")
        metrics = trainer._logger_connector._callback_metrics
        return {
            "random": random_state(),
            "loaders": [loader.state(over=over) for loader in self._loaders],
            "logged": logged_values(trainer),
            "metrics": metric_states(pl_module),
            "callback_metrics": {name: value.detach().cpu() for name, value in metrics.items()},
            "gradients": {name: p.grad.cpu() for name, p in named if p.grad is not None},
            "accumulates": trainer.accumulate_grad_batches,
            "validates": validates,
            "differs": differs,
        }

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._ending = True  # the checkpoint of an exception is written after this
        self._lift()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._lift()
        self._loaders = []

    def _lift(self) -> None:
        self._stateful_for_now.lift()
        self._shadows.lift()
        for loader in self._loaders:
            loader.let_go()


def _changed_windows(trainer: Trainer, saved: dict[str, Any]) -> list[str]:
    now = trainer.accumulate_grad_batches
    then = saved.get("accumulates", now)
    scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks)  # type: ignore[attr-defined]
    if then == now or scheduled:
        return []
    what = "which batches make a step, and how many steps an epoch has"
    return [f"accumulate_grad_batches was {then}, is {now}: {what}"]
