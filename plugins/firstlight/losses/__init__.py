"""Losses: prediction and target to a scalar. The function holds the mathematics, the Module remembers arguments."""

from torch.nn import GaussianNLLLoss, KLDivLoss, NLLLoss, SmoothL1Loss

from firstlight.losses._adversarial import AdversarialLoss, gradient_penalty, r1_penalty
from firstlight.losses._binary_cross_entropy import BinaryCrossEntropyLoss, binary_cross_entropy_loss
from firstlight.losses._binary_focal import BinaryFocalLoss, binary_focal_loss
from firstlight.losses._cross_entropy import CrossEntropyLoss, cross_entropy_loss
from firstlight.losses._focal import FocalLoss, focal_loss
from firstlight.losses._gaussian_kl import GaussianKLLoss, gaussian_kl_loss
from firstlight.losses._log_cosh import LogCoshLoss, log_cosh_loss
from firstlight.losses._reconstruction import ReconstructionLoss
from firstlight.losses._regression import HuberLoss, L1Loss, MSELoss

__all__ = [
    "AdversarialLoss",
    "BinaryCrossEntropyLoss",
    "BinaryFocalLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "GaussianKLLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LogCoshLoss",
    "MSELoss",
    "NLLLoss",
    "ReconstructionLoss",
    "SmoothL1Loss",
    "binary_cross_entropy_loss",
    "binary_focal_loss",
    "cross_entropy_loss",
    "focal_loss",
    "gaussian_kl_loss",
    "gradient_penalty",
    "log_cosh_loss",
    "r1_penalty",
]
