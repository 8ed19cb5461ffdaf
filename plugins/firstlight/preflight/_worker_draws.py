"""Whether two workers of a loader draw the same random numbers, seen from samples that real workers fetch."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from firstlight._batch import tensors_of
from firstlight._require import said_by
from firstlight.preflight._twin import hushed

_DRAWS = 32  # of each worker; fewer would take rare events of chance for equal streams
_LOOKS = 8  # in this process, to see whether samples are random at all
_SECONDS = 0.2  # that fetching may take


def equal_draws(loader: Any, *, ranks: int) -> tuple[str | None, str]:
    """Return among what random samples come out alike ("two workers", "all processes", or ""), or None and the reason.

    Workers are started only where samples are seen to be random, and quick to fetch.
    """
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return None, "the loader is no plain DataLoader of a data set with indices"
    if loader.num_workers < (1 if ranks > 1 else 2):
        return None, "the loader has fewer than two workers"
    try:
        with hushed():
            begun = time.monotonic()
            looks = _fetched(loader, _LOOKS, workers=0)
            seconds = (time.monotonic() - begun) / _LOOKS
            if len(set(looks)) == 1:
                return "", ""
            if ranks > 1 and _seeded_alike(loader):
                return "all processes", ""
            if loader.num_workers < 2:
                return "", ""
            if _start_method(loader) != "fork":
                return None, f"workers that {_start_method(loader)} are slow to start"
            if seconds * _DRAWS > _SECONDS:
                return None, f"a random sample takes {1000 * seconds:.0f} ms, too long to fetch it {_DRAWS} times"
            draws = _fetched(loader, 2 * _DRAWS, workers=2)
    except Exception as error:
        return None, f"a sample could not be fetched alone: {said_by(error)}"
    first, second = draws[::2], draws[1::2]  # batches go to workers in turn
    exceptions = len(first) - Counter(first).most_common(1)[0][1]
    return ("two workers" if first == second and exceptions >= 3 else ""), ""


def _fetched(loader: Any, number: int, *, workers: int) -> list[bytes]:
    """Return what one sample is, each time that it is fetched."""
    again: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_sampler=[[0]] * number,
        collate_fn=loader.collate_fn,
        num_workers=workers,
        worker_init_fn=loader.worker_init_fn if workers else None,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
        timeout=5 if workers else 0,
    )
    return [b"".join(t.contiguous().view(-1).numpy().tobytes() for t in tensors_of(batch)) for batch in again]


def _seeded_alike(loader: Any) -> bool:
    """Whether processes got one seed, and their workers nothing that tells them apart; Lightning keeps both here."""
    seeded, apart = os.environ.get("PL_GLOBAL_SEED"), os.environ.get("PL_SEED_WORKERS", "0") == "1"
    return bool(seeded) and not apart and loader.worker_init_fn is None


def _start_method(loader: Any) -> str:
    context = loader.multiprocessing_context
    return str(context.get_start_method() if context is not None else multiprocessing.get_start_method())
