"""HealthSummaryOfPytorchLightning: the hooks of zero code, for a Trainer of ``pytorch_lightning``."""

from __future__ import annotations

from typing import final

from pytorch_lightning import Callback

from firstlight.callbacks._health_hooks import HealthHooks


@final
class HealthSummaryOfPytorchLightning(HealthHooks, Callback):
    """What ``FIRSTLIGHT=monitor`` adds to a Trainer of ``pytorch_lightning``."""
