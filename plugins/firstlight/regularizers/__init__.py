"""Regularizers: parameters to a penalty, a term of the loss."""

from firstlight.regularizers._weight_penalty import L1Penalty, L2Penalty

__all__ = ["L1Penalty", "L2Penalty"]
