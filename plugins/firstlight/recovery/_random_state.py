"""The global generators of a process as one tensor, so that any file and any shared memory can hold them."""

from __future__ import annotations

import math
import random
import struct
import sys
from typing import Any

import torch
from torch import Tensor

_PYTHON = struct.Struct("=625Id")  # the words of its Mersenne twister, and the second half of a pair of normals
_NUMPY = struct.Struct("=2496siId")
_TORCH = torch.random.get_rng_state().numel()
SIZE = _PYTHON.size + 1 + _NUMPY.size + _TORCH


def host_state() -> Tensor:
    """Return the generators of python, numpy (if it was imported) and torch on the CPU, as ``SIZE`` bytes.

    >>> before = host_state()
    >>> drawn = random.random(), float(torch.rand(()))
    >>> set_host_state(before)
    >>> drawn == (random.random(), float(torch.rand(())))
    True
    """
    _, words, pending = random.getstate()
    packed = bytearray(_PYTHON.pack(*words, math.nan if pending is None else pending))
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:  # a generator that was never imported has no state
        packed += bytes(1 + _NUMPY.size)
    else:
        _, keys, position, has_pending, normal = numpy.random.get_state()
        packed += b"\1" + _NUMPY.pack(keys.tobytes(), position, has_pending, normal)
    return torch.cat([torch.frombuffer(packed, dtype=torch.uint8), torch.random.get_rng_state()])


def set_host_state(state: Tensor) -> None:
    """Put the generators back; ``state`` is what :func:`host_state` returned."""
    packed = state[:-_TORCH].numpy().tobytes()
    *words, pending = _PYTHON.unpack_from(packed)
    random.setstate((3, tuple(words), None if math.isnan(pending) else pending))
    if packed[_PYTHON.size]:
        import numpy

        words, position, has_pending, normal = _NUMPY.unpack_from(packed, _PYTHON.size + 1)
        keys = numpy.frombuffer(words, dtype=numpy.uint32)
        numpy.random.set_state(("MT19937", keys, position, has_pending, normal))
    torch.random.set_rng_state(state[-_TORCH:].clone())


def random_state() -> dict[str, Any]:
    """Return all global generators: those of :func:`host_state`, and of every CUDA device in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {"host": host_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Put all global generators back; states of devices that are not here are left out."""
    set_host_state(state["host"])
    for device, of_device in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(of_device, device)
