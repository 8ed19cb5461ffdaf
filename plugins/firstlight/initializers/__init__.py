"""Initializers: tensors filled in place, chosen by what each layer is and what it feeds."""

from firstlight.initializers._gain import gain
from firstlight.initializers._initialize import initialize_
from firstlight.initializers._lsuv import lsuv_
from firstlight.initializers._orthogonal import orthogonal_, orthogonal_gates_
from firstlight.initializers._plan import InitPlan, InitRule
from firstlight.initializers._prior_bias import prior_bias_
from firstlight.initializers._report import InitReport, InitRow
from firstlight.initializers._residual_scaled import residual_scaled_

__all__ = [
    "InitPlan",
    "InitReport",
    "InitRow",
    "InitRule",
    "gain",
    "initialize_",
    "lsuv_",
    "orthogonal_",
    "orthogonal_gates_",
    "prior_bias_",
    "residual_scaled_",
]
