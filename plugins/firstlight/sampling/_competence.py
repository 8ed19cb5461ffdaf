"""Competence: how much of the data, easiest first, a model is ready for."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight._require import require


@dataclass(frozen=True)
class Competence:
    """``min(1, (t (1 - c0**power) / epochs + c0**power) ** (1 / power))`` after t epochs: from c0 to all of the data.

    With ``power=2``, the square root, new samples come in at a rate that falls as the pool grows, so each has the same
    time to be learned; ``power=1`` is linear.

    Shapes: a number of epochs, whole or not, to a fraction in (0, 1]. Unit: fraction of the samples.
    Law: ``initial`` at 0, never falling, 1 from ``epochs`` on. Source: Platanios et al. 2019, arXiv:1903.09848.

    Raises:
        ValueError: ``epochs`` or ``power`` not above zero, ``initial`` outside (0, 1].

    >>> competence = Competence(epochs=10, initial=0.1)
    >>> [round(competence(t), 3) for t in (0, 2.5, 5, 10, 20)]
    [0.1, 0.507, 0.711, 1.0, 1.0]
    """

    epochs: float
    initial: float = 0.01
    power: float = 2.0

    def __post_init__(self) -> None:
        require(0 < self.epochs < float("inf"), "epochs", self.epochs, "above zero, and finite")
        require(0 < self.initial <= 1, "initial", self.initial, "a fraction in (0, 1]")
        require(0 < self.power < float("inf"), "power", self.power, "above zero, and finite")

    def __call__(self, epoch: float) -> float:
        if epoch >= self.epochs:
            return 1.0
        start = self.initial**self.power
        return float(min(1.0, (epoch * (1 - start) / self.epochs + start) ** (1 / self.power)))
