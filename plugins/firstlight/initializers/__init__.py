"""Initializers: tensors filled in place, chosen by what each layer is and what it feeds."""

from firstlight.initializers._gain import gain
from firstlight.initializers._initialize import initialize_
from firstlight.initializers._orthogonal import orthogonal_, orthogonal_gates_
from firstlight.initializers._plan import InitPlan, InitRule
from firstlight.initializers._report import InitReport, InitRow

__all__ = [
    "InitPlan",
    "InitReport",
    "InitRow",
    "InitRule",
    "gain",
    "initialize_",
    "orthogonal_",
    "orthogonal_gates_",
]
