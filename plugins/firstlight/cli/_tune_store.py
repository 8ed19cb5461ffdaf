"""Where a search is kept, so that it goes on after a kill, and so that workers share it.

Every trial has an index: how many trials were begun before it, not counting those begun again. Numbers are given out
by the store, one at a time, so each index is one worker's alone. Index 0 is the configuration as it is.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

BEAT_SECONDS = 20.0
_SILENT_FOR = 300.0  # seconds after which a worker on another machine is taken to be gone; clocks may differ a little
_BEFORE_PRUNING = 5  # finished trials whose median means something
_AGAIN, _SURPLUS, _INDEX = "begun_again", "surplus", "index"


def open_storage(where: str) -> BaseStorage:
    """Return the store at a database's URL or in a file.

    A file is Optuna's journal and not SQLite, of which Optuna gives one waiting trial to two workers.
    """
    if "://" in where:
        return RDBStorage(where)
    Path(where).parent.mkdir(parents=True, exist_ok=True)
    # A lock by exclusive creation: links, the default, need a privilege on Windows.
    return JournalStorage(JournalFileBackend(where, lock_obj=JournalFileOpenLock(where)))


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Leave out Optuna's own lines; the search says what matters."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


@dataclass(frozen=True)
class Store:
    """One study, as this worker sees it."""

    study: Study

    @classmethod
    def opened(cls, name: str, where: str, mode: str) -> Store:
        """Open a study, or begin it."""
        direction = StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE
        storage = open_storage(where)
        return cls(optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True))

    @property
    def trials(self) -> dict[int, FrozenTrial]:
        """The trials that count, by index; of one begun again only the last."""
        found = self.study.get_trials(deepcopy=False)
        counted = {i: t for i, t in _indexed(found).items() if not {_SURPLUS, _AGAIN} & set(found[t].user_attrs)}
        return {i: found[number] for i, number in sorted(counted.items())}

    def index(self, trial: Trial) -> int:
        """Return how many trials were begun before this one."""
        return _index(self.study.get_trials(deepcopy=False), trial.number)

    def claim(self, num_trials: int) -> tuple[Trial, int] | None:
        """Begin the next trial and return it with its index; None when as many as wanted have begun."""
        self.give_up_dead()
        trials = self.trials
        if len(trials) >= num_trials and not any(t.state == TrialState.WAITING for t in trials.values()):
            return None
        trial = self.study.ask()
        trial.set_user_attr("owner", _me())
        beat(trial)
        index = self.index(trial)
        if index < num_trials:
            return trial, index
        # Another worker was quicker with the last one.
        trial.set_user_attr(_SURPLUS, value=True)
        self.study.tell(trial, state=TrialState.FAIL)
        return None

    def give_up_dead(self) -> None:
        """Begin again, later, what workers had in hand that are gone."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_dead(trial):
                self.begin_again(trial.number)

    def begin_again(self, number: int) -> None:
        """Give a running trial up, and queue its values for the next worker that asks."""
        found = self.study.get_trials(deepcopy=False)
        try:
            Trial(self.study, found[number]._trial_id).set_user_attr(_AGAIN, value=True)
            self.study.tell(number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return  # another worker has seen it too, and was first
        again = {_INDEX: _index(found, number)}
        self.study.enqueue_trial(dict(found[number].params), user_attrs=again)


def beat(trial: Trial) -> None:
    """Say that the trial's worker is alive."""
    trial.set_user_attr("alive", time.time())


def _indexed(trials: list[FrozenTrial]) -> dict[int, int]:
    """Return which trial has which index; of several with the same the last."""
    found: dict[int, int] = {}
    begun = 0
    for trial in trials:
        if _SURPLUS in trial.user_attrs:
            continue
        found[trial.user_attrs.get(_INDEX, begun)] = trial.number
        begun += _INDEX not in trial.user_attrs
    return found


def _index(trials: list[FrozenTrial], number: int) -> int:
    return next(index for index, other in _indexed(trials).items() if other == number)


def _me() -> dict[str, Any]:
    # Containers may share the name of their host and not its processes.
    space = Path("/proc/self/ns/pid")
    return {"host": platform.node(), "space": str(space.readlink()) if space.exists() else "", "pid": os.getpid()}


def _is_dead(trial: FrozenTrial) -> bool:
    owner, me = trial.user_attrs.get("owner"), _me()
    is_here = owner is not None and (owner["host"], owner["space"]) == (me["host"], me["space"])
    if owner is not None and is_here and os.name != "nt":  # there, signal 0 would end the process
        return not _runs(owner["pid"])
    started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - float(trial.user_attrs.get("alive", started)) > _SILENT_FOR


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def running_trial(study: str, storage: str, number: int, begins: int) -> Trial:
    """Return a trial that another process has begun; pruned from validation ``begins`` on."""
    with quiet_optuna():
        pruner = MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=begins)
        loaded = optuna.load_study(study_name=study, storage=open_storage(storage), pruner=pruner)
        return Trial(loaded, loaded.get_trials(deepcopy=False)[number]._trial_id)
