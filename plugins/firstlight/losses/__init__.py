"""Losses: prediction and target to a scalar. The function holds the mathematics, the Module remembers arguments."""

from torch.nn import GaussianNLLLoss, KLDivLoss, NLLLoss, SmoothL1Loss

from firstlight.losses._adversarial import AdversarialLoss, gradient_penalty, r1_penalty
from firstlight.losses._binary_cross_entropy import BinaryCrossEntropyLoss, binary_cross_entropy_loss
from firstlight.losses._binary_focal import BinaryFocalLoss, binary_focal_loss
from firstlight.losses._cross_entropy import CrossEntropyLoss, cross_entropy_loss
from firstlight.losses._ctc import CTCLoss, ctc_loss
from firstlight.losses._focal import FocalLoss, focal_loss
from firstlight.losses._gaussian_kl import GaussianKLLoss, gaussian_kl_loss
from firstlight.losses._info_nce import InfoNCELoss, info_nce_loss
from firstlight.losses._linear_cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy_loss
from firstlight.losses._log_cosh import LogCoshLoss, log_cosh_loss
from firstlight.losses._nt_xent import NTXentLoss, nt_xent_loss
from firstlight.losses._reconstruction import ReconstructionLoss
from firstlight.losses._regression import HuberLoss, L1Loss, MSELoss
from firstlight.losses._sequence_cross_entropy import SequenceCrossEntropyLoss, sequence_cross_entropy_loss
from firstlight.losses._triplet import TripletLoss, triplet_loss

__all__ = [
    "AdversarialLoss",
    "BinaryCrossEntropyLoss",
    "BinaryFocalLoss",
    "CTCLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "GaussianKLLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "InfoNCELoss",
    "KLDivLoss",
    "L1Loss",
    "LinearCrossEntropyLoss",
    "LogCoshLoss",
    "MSELoss",
    "NLLLoss",
    "NTXentLoss",
    "ReconstructionLoss",
    "SequenceCrossEntropyLoss",
    "SmoothL1Loss",
    "TripletLoss",
    "binary_cross_entropy_loss",
    "binary_focal_loss",
    "cross_entropy_loss",
    "ctc_loss",
    "focal_loss",
    "gaussian_kl_loss",
    "gradient_penalty",
    "info_nce_loss",
    "linear_cross_entropy_loss",
    "log_cosh_loss",
    "nt_xent_loss",
    "r1_penalty",
    "sequence_cross_entropy_loss",
    "triplet_loss",
]
