"""Losses: prediction and target to a scalar. The function holds the mathematics, the Module remembers arguments."""

from firstlight.losses._cross_entropy import CrossEntropyLoss, cross_entropy_loss

__all__ = ["CrossEntropyLoss", "cross_entropy_loss"]
