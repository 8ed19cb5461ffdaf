"""Schedules: frozen dataclasses, optimizer step to a factor of the base rate."""

from firstlight.schedules._joined import Joined
from firstlight.schedules._one_cycle import OneCycle
from firstlight.schedules._preview import Preview, preview
from firstlight.schedules._schedule import Schedule, lr_lambda
from firstlight.schedules._shapes import Constant, CosineAnnealing, StepDecay, WarmupCosine
from firstlight.schedules._warmup_inverse_sqrt import WarmupInverseSqrt
from firstlight.schedules._warmup_linear import WarmupLinear
from firstlight.schedules._warmup_stable_decay import WarmupStableDecay

__all__ = [
    "Constant",
    "CosineAnnealing",
    "Joined",
    "OneCycle",
    "Preview",
    "Schedule",
    "StepDecay",
    "WarmupCosine",
    "WarmupInverseSqrt",
    "WarmupLinear",
    "WarmupStableDecay",
    "lr_lambda",
    "preview",
]
