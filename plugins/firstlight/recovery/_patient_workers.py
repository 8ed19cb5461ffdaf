"""Loader workers that outlast the first signal: the step that is to be finished may still need their batches."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from firstlight._shadows import Shadows
from firstlight.recovery._signal_flag import SignalFlag

_KEY = "_firstlight_patience"


class PatientWorkers:
    """Hands the flag's handlers to the workers of loaders, until it is lifted.

    Workers are forked before anybody listens, and torch gives them a handler of SIGTERM that ends them at once.
    """

    def __init__(self, flag: SignalFlag) -> None:
        self._flag = flag
        self._loaders: weakref.WeakSet[DataLoader[Any]] = weakref.WeakSet()

    def guard(self, loader: object) -> None:
        """Let the workers that ``loader`` will start be patient."""
        if not isinstance(loader, DataLoader) or not loader.num_workers or loader in self._loaders:
            return
        make: Callable[[], Any] = loader._get_iterator

        def get_iterator() -> Any:
            own = loader.worker_init_fn
            loader.worker_init_fn = _Patient(own, self._flag)
            try:
                return make()
            finally:
                loader.worker_init_fn = own

        shadows = Shadows()
        shadows.put(loader, "_get_iterator", get_iterator)
        vars(loader)[_KEY] = shadows  # held by the loader alone: it may be one of many
        self._loaders.add(loader)

    def lift(self) -> None:
        """Leave the loaders as they were."""
        for loader in self._loaders:
            vars(loader).pop(_KEY).lift()
        self._loaders.clear()


class _Patient:
    def __init__(self, own: Callable[[int], None] | None, flag: SignalFlag) -> None:
        self._own, self._flag = own, flag

    def __call__(self, worker: int) -> None:
        self._flag.outlast()
        if self._own is not None:
            self._own(worker)
