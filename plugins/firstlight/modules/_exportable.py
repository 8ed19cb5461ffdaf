"""What of a module is exported."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Exportable:
    """A model to export, and inputs to trace and compare it on; what :meth:`ObjectiveModule.export_model` returns.

    Args:
        model: from tensors to a tensor, or to a tuple or mapping of tensors; it is exported in evaluation mode.
        inputs: its positional arguments, taken from a real batch.
        dynamic_dims: the dimensions of every input whose size may be another in use; 0 is the batch.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic_dims: tuple[int, ...] = (0,)
