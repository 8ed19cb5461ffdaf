"""The losses of the table: with which arguments each is built, what it is fed, and which laws it is excused from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from firstlight import losses

Inputs = tuple[Tensor, ...]


def plain_call(loss: nn.Module, *inputs: Tensor) -> Tensor:
    return loss(*inputs)


@dataclass(frozen=True)
class Row:
    """One loss: a Module, a function, or both (``function`` then must equal ``cls``).

    ``inputs()`` returns float64 tensors, the same at every call, with gradients asked for nowhere; ``variants`` are
    keyword arguments that ``cls`` and ``function`` both take (lists are given to the function as float64 tensors).
    """

    inputs: Callable[[], Inputs]
    cls: type[nn.Module] | None = None
    function: Callable[..., Tensor] | None = None
    variants: tuple[dict[str, Any], ...] = ({},)
    call: Callable[..., Tensor] = plain_call  # how the Module is called on the inputs
    differentiable: tuple[int, ...] = (0,)  # positions in inputs
    batch_dims: tuple[int | None, ...] | None = None  # where each input keeps the batch; default: dim 0 of all
    best: Callable[[Inputs], Inputs] | None = None  # the inputs with a perfect prediction in place of the given one
    extreme: Callable[[Inputs], Inputs] | None = None  # default: differentiable inputs become +-1e4
    reductions: tuple[str, ...] = ("mean", "sum", "none")  # () when there is no such argument
    exempt: Mapping[str, str] = field(default_factory=dict)  # name of a law (its test) -> why it does not hold here


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def labels(*shape: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=seeded(seed))


def sure_of(target: Tensor, classes: int) -> Tensor:
    """Return logits [N, C, *] that give each label all the probability there is."""
    return 60.0 * nn.functional.one_hot(target, classes).movedim(-1, 1).double()


_CROSS_ENTROPY = Row(
    inputs=lambda: (normal(6, 4), labels(6, classes=4)),
    cls=losses.CrossEntropyLoss,
    function=losses.cross_entropy_loss,
    variants=({}, {"weight": [1.0, 2.0, 0.5, 3.0]}),
    best=lambda inputs: (sure_of(inputs[1], 4), inputs[1]),
    exempt={"none_is_consistent_with_mean:weight": "class weights: the mean divides by the sum of the weights"},
)

ROWS: dict[str, Row] = {
    "CrossEntropyLoss": _CROSS_ENTROPY,
    "cross_entropy_loss": _CROSS_ENTROPY,
}

# Calls that must fail, with the error and what its message must say.
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: losses.CrossEntropyLoss(label_smoothing=1.5), ValueError, r"label_smoothing must be between 0 and 1"),
    (lambda: losses.CrossEntropyLoss(reduction="average"), ValueError, r"reduction must be 'mean', 'sum' or 'none'"),
]
