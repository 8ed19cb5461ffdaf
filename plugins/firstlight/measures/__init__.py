"""Pure readings of batches, outputs, gradients, updates and curves: tensors in, plain numbers out."""

from firstlight.measures._batch import (
    batch_label_entropy,
    column_spreads,
    duplicate_share,
    label_signal,
    shared_rows,
    spread,
)
from firstlight.measures._curve import best_of_last, rising_share
from firstlight.measures._gradients import relative_norms
from firstlight.measures._outputs import dead_units, identical_rows, is_simplex, saturated_share
from firstlight.measures._series import fall, spikes
from firstlight.measures._updates import update_ratios

__all__ = [
    "batch_label_entropy",
    "best_of_last",
    "column_spreads",
    "dead_units",
    "duplicate_share",
    "fall",
    "identical_rows",
    "is_simplex",
    "label_signal",
    "relative_norms",
    "rising_share",
    "saturated_share",
    "shared_rows",
    "spikes",
    "spread",
    "update_ratios",
]
