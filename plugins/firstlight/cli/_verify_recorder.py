"""One training of a verification, seen from inside: what it was after every batch, and where it is saved."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from firstlight.cli._verify_digests import digest, digests
from firstlight.cli._verify_facts import facts

VARIABLE = "FIRSTLIGHT_VERIFY_RESUME"

# Of a checkpoint: what is compared after every batch, says how far a run is, or is made of files and versions.
_NOT_COMPARED = {"loops", "callbacks", "optimizer_states", "lr_schedulers", "firstlight_exact_resume"}
_NOT_COMPARED |= {"pytorch-lightning_version", "hparams_name", "datamodule_hparams_name", "hparams_type"}


def recorders() -> list[Recorder]:
    """Return the callback of a training that is one of a verification, if this process is in one."""
    told = os.environ.get(VARIABLE)
    return [Recorder(**json.loads(told))] if told else []


class Recorder(Checkpoint):
    """Writes down what a training is after every batch and epoch; saves where it is told; ends it after ``last`` steps.

    A step is a batch, or as many as are accumulated. Each rank writes ``<folder>/rank<N>.json``.

    Args:
        folder: Where the file and the checkpoints go.
        last: Step to end after.
        begun: Step that this training goes on from.
        saves: Whether to save: after the steps of ``stops``, or where there are none inside an epoch and at its end.
    """

    def __init__(self, *, folder: str, last: int, begun: int = 0, saves: bool = False, stops: list[int]) -> None:
        self.folder = Path(folder)
        self.last, self.step = last, begun
        self.saves, self.stops = saves, stops
        self.records: list[dict[str, Any]] = []
        self.saved: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self._batch = ""
        self._at_end = False  # a stop that was asked for is the end of this epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Last of all, so that the others have acted; and alone, so that nothing is written where runs are kept.
        others = [callback for callback in trainer.callbacks if not isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.facts = facts(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = digest(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        over = trainer.is_last_batch or loop._num_ready_batches_reached()
        whole = over or not pl_module.automatic_optimization or not loop._should_accumulate()
        self.step += whole
        place = f"{trainer.current_epoch}:{batch_idx}"
        loss = {} if outputs is None else digests(outputs, "" if isinstance(outputs, dict) else "loss")
        values = {"samples": {"batch": self._batch}, "losses": loss}
        self._record(trainer, pl_module, place, values, step=self.step + (not whole))
        if whole and self._should_save(trainer, over=over):
            self._save(trainer, place)
        if whole and not over:
            self._end_if_done(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        place = f"{trainer.current_epoch}:end"
        self._record(trainer, pl_module, place, {}, step=self.step)
        first_end = not self.stops and all(not saved["epoch_ends"] for saved in self.saved)
        if self.saves and self.step < self.last and (self._at_end or first_end):
            self._save(trainer, place, epoch_ends=True)
        self._at_end = False
        self._end_if_done(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def _should_save(self, trainer: Trainer, *, over: bool) -> bool:
        if not self.saves or self.step >= self.last:
            return False
        if self.stops:
            self._at_end = over and self.step in self.stops
            return self.step in self.stops and not over
        if over or any(not saved["epoch_ends"] for saved in self.saved):
            return False
        fetcher: Any = trainer.fit_loop._data_fetcher
        # Lightning leaves out a validation that is due at a checkpoint: where one can choose, not there.
        return self.step >= max(1, self.last // 3) and not trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)

    def _save(self, trainer: Trainer, place: str, *, epoch_ends: bool = False) -> None:
        path = self.folder / f"step-{self.step}.ckpt"
        trainer.save_checkpoint(path)
        self.saved.append({"path": str(path), "place": place, "step": self.step, "epoch_ends": epoch_ends})

    def _end_if_done(self, trainer: Trainer) -> None:
        if self.step >= self.last:
            self._finish(trainer)
            # Not should_stop, with which Lightning would validate first.
            raise SystemExit(0)

    def _record(
        self, trainer: Trainer, module: LightningModule, place: str, values: dict[str, Any], *, step: int
    ) -> None:
        buffers = dict(module.named_buffers())
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        optimizers = {
            f"{names.get(id(parameter), '?')} {key}": value
            for optimizer in trainer.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
        schedules = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        settings = [
            {key: value for key, value in group.items() if key != "params"}
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
        ]
        states: dict[str, Any] = {}
        for callback in trainer.callbacks[:-1]:  # type: ignore[attr-defined]
            name = type(callback).__name__
            states[f"{name} {len(states)}" if name in states else name] = callback.state_dict()
        values |= {
            "weights": digests(dict(module.named_parameters()), ""),
            "buffers": digests(buffers, ""),
            "optimizers": digests(optimizers, ""),
            "schedules": {**digests(schedules, "scheduler"), **digests(settings, "group")},
            "callbacks": digests(states, ""),
            "logged values": digests(dict(trainer.callback_metrics), ""),
            "random numbers": _generators(),
        }
        self.records.append({"place": place, "step": step, "values": values})

    def _finish(self, trainer: Trainer) -> None:
        if self.records:
            # Entries that modules, data and callbacks add themselves, such as averaged weights: once, at the end.
            held = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            own = {key: value for key, value in held.items() if key not in _NOT_COMPARED}
            self.records[-1]["values"]["checkpoints"] = digests(own, "")
        found = {"records": self.records, "saved": self.saved, "facts": self.facts}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found), encoding="utf-8")


def _generators() -> dict[str, str]:
    numpy: Any = sys.modules.get("numpy")
    states = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if numpy is not None:
        states["numpy"] = numpy.random.get_state()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    return {name: digest(state) for name, state in states.items()}
