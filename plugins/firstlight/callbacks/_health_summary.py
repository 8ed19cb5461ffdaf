"""HealthSummary: the hooks of zero code, for a Trainer of ``lightning.pytorch``."""

from __future__ import annotations

from typing import final

from lightning.pytorch import Callback

from firstlight.callbacks._health_hooks import HealthHooks


@final
class HealthSummary(HealthHooks, Callback):
    """What ``FIRSTLIGHT=monitor`` adds to a Trainer of ``lightning.pytorch``."""
