"""Regularizers: parameters to a penalty, a term of the loss; and bounds that are set after a step."""

from firstlight.regularizers._activation_penalty import ActivationPenalty
from firstlight.regularizers._max_norm import max_norm_
from firstlight.regularizers._orthogonal_penalty import OrthogonalPenalty
from firstlight.regularizers._soft_threshold import soft_threshold_
from firstlight.regularizers._weight_penalty import ElasticNetPenalty, L1Penalty, L2Penalty

__all__ = [
    "ActivationPenalty",
    "ElasticNetPenalty",
    "L1Penalty",
    "L2Penalty",
    "OrthogonalPenalty",
    "max_norm_",
    "soft_threshold_",
]
