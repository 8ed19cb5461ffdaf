"""Which tensors of a batch go into the model, and which only into the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from firstlight._batch import size_of, tensors_of
from firstlight._rng import isolated_rng
from firstlight.preflight._bench import Bench, Ran
from firstlight.preflight._subject import with_tensors


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


def layout_of(bench: Bench, batch: Any, ran: Ran) -> Layout:
    """Tell inputs by where their memory went in the step ``ran``, and targets by whether they change its loss.

    A step that copies its inputs is told by order.
    """
    tensors = tensors_of(batch)
    size = size_of(batch)
    received = {_memory(tensor) for call in ran.record.networks for tensor in call.inputs}
    inputs = [index for index, tensor in enumerate(tensors) if _memory(tensor) in received]
    if not inputs and tensors:
        inputs = [0]
    rest = [i for i, tensor in enumerate(tensors) if i not in inputs and tensor.ndim and len(tensor) == size]
    return Layout(tuple(inputs), tuple(index for index in rest if _matters(bench, batch, index)))


def _matters(bench: Bench, whole: Any, position: int) -> bool:
    """Whether the loss changes when one tensor of the batch holds the same for all samples."""

    def losses(batch: Any) -> list[float]:
        with isolated_rng(0):
            return [float(loss.detach()) for loss in bench.run(batch).losses]

    plain = losses(whole)
    # One of them may leave the mean where it is, or the labels as they are.
    changes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda t: t[0].expand_as(t).clone(),
        lambda t: t[-1].expand_as(t).clone(),
        lambda t: t + 1,
    )
    for change in changes:
        counter = itertools.count()

        def at(tensor: Tensor) -> Tensor:
            return change(tensor) if next(counter) == position else tensor  # noqa: B023

        try:
            if losses(with_tensors(whole, at)) != plain:
                return True
        except (RuntimeError, IndexError, ValueError):  # the loss refuses it: so it reads it
            return True
    return False


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
