"""Torch's own reference implementations, which its tests compare with."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest


def torch_reference(name: str) -> Callable[..., Any]:
    """Return a function of torch's test helpers, or skip the test where what they import is missing."""
    pytest.importorskip("expecttest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn that hypothesis is missing
        found: Callable[..., Any] = getattr(importlib.import_module("torch.testing._internal.common_nn"), name)
    return found
