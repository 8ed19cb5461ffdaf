"""Mixing: a batch to a mixture of its samples and soft targets."""

from firstlight.mixing._cutmix import CutMix
from firstlight.mixing._mixup import MixUp

__all__ = ["CutMix", "MixUp"]
