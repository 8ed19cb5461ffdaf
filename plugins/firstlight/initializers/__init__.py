"""Initializers: tensors filled in place, chosen by what each layer is and what it feeds."""

from firstlight.initializers._gain import gain
from firstlight.initializers._initialize import InitReport, InitRow, initialize_
from firstlight.initializers._plan import InitPlan, InitRule

__all__ = ["InitPlan", "InitReport", "InitRow", "InitRule", "gain", "initialize_"]
