"""The one place where wandb is imported: late, because it costs seconds on a cold disk."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

INSTALL = "pip install 'firstlight[wandb]'"


def require_wandb() -> None:
    """Raise ``ModuleNotFoundError`` with the command that installs wandb, without importing it."""
    if importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError(f"wandb is not installed; {INSTALL}")


def import_wandb(submodule: str = "") -> Any:
    """Return wandb, or one of its submodules."""
    require_wandb()
    return importlib.import_module(f"wandb.{submodule}" if submodule else "wandb")
