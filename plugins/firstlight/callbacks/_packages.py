"""Lightning is installed under two names, with classes that know nothing of each other."""

from __future__ import annotations

from typing import Any

_MODULES = ("lightning.pytorch.core.module", "pytorch_lightning.core.module")


def lightning_module_class(pl_module: Any) -> type[Any]:
    """Return the ``LightningModule`` that ``pl_module`` is one of: that of its own package.

    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> lightning_module_class(BoringModel()).__module__
    'lightning.pytorch.core.module'
    """
    return next(base for base in type(pl_module).__mro__ if base.__module__ in _MODULES)
