"""Which tensors of a batch go into the model, and which only into the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from firstlight.preflight._bench import Ran
from firstlight.preflight._subject import size_of, tensors_of


@dataclass(frozen=True)
class Layout:
    """Positions among the tensors of a batch."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    def input_of(self, batch: Any) -> Tensor | None:
        """Return the first input."""
        return tensors_of(batch)[self.inputs[0]] if self.inputs else None

    def target_of(self, batch: Any) -> Tensor | None:
        """Return the target, if the batch has exactly one."""
        return tensors_of(batch)[self.targets[0]] if len(self.targets) == 1 else None


def layout_of(batch: Any, ran: Ran) -> Layout:
    """Tell inputs from targets by where their memory went in a step; a step that copies its inputs is told by order."""
    tensors = tensors_of(batch)
    size = size_of(batch)
    received = {_memory(tensor) for call in ran.record.networks for tensor in call.inputs}
    inputs = [index for index, tensor in enumerate(tensors) if _memory(tensor) in received]
    if not inputs and tensors:
        inputs = [0]
    rest = [i for i, tensor in enumerate(tensors) if i not in inputs and tensor.ndim and len(tensor) == size]
    return Layout(tuple(inputs), tuple(rest))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
