"""Random number generators, put back as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block with the global generators of python, numpy and torch (all devices), then put them back.

    They are put back after an exception too, which Lightning's ``isolate_rng`` does not do. ``seed`` seeds torch's
    inside the block.

    >>> before = torch.random.get_rng_state()
    >>> with isolated_rng(seed=0):
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.random.get_rng_state())
    True
    """
    numpy = sys.modules.get("numpy")  # a generator that was never imported has no state to lose
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    # Named, since torch warns of several devices that were not; none of them has a state before its first use.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            if seed is not None:
                torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)
