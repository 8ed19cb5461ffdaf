"""Schedules: frozen dataclasses, optimizer step to a factor of the base rate."""

from firstlight.schedules._schedule import Schedule, lr_lambda
from firstlight.schedules._shapes import Constant, CosineAnnealing, StepDecay, WarmupCosine

__all__ = ["Constant", "CosineAnnealing", "Schedule", "StepDecay", "WarmupCosine", "lr_lambda"]
