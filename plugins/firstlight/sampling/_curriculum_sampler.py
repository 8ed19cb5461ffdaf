"""CurriculumSampler: easy samples first, hard ones as competence grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from firstlight._require import require
from firstlight.sampling._sharded_order import ShardedOrder, generator_for


class CurriculumSampler(ShardedOrder):
    """Draws from the easiest fraction ``competence(t)`` of the data, t in epochs and growing within each epoch.

    An epoch stays as long as without a curriculum, so schedules and step counts hold. While the pool is smaller than
    that, its samples come again: each draw is uniform over those of the pool that have not come since it was last
    used up, and new ones join at once. Samples of equal difficulty are ranked in an order that ``seed`` decides.
    Sharding, resuming and ``set_epoch`` are those of :class:`ResumableSampler`. ``competence`` is a function from
    epochs (with a fraction: 1.5 is the middle of the second one) to a fraction of the data, such as
    :class:`Competence`.

    Shapes: N difficulties to ``ceil(N / num_replicas)`` indices a rank. Unit: samples; difficulties count by rank only.
    Law: the draw at place i of epoch e is among the ``ceil(competence(e + i / N) N)`` easiest (above 1024 samples the
    pool grows in 1024 steps an epoch); at competence 1 an epoch is each sample once. A run stopped at any sample and
    resumed draws what the unbroken run draws.
    Source: Platanios et al. 2019, arXiv:1903.09848; Bengio et al. 2009.

    Raises:
        ValueError: no difficulties, or some not finite; a competence outside [0, 1] or one that falls (while
            iterating); a rank outside the number of replicas.

    >>> from firstlight.sampling import Competence
    >>> sampler = CurriculumSampler([5.0, 1.0, 3.0, 2.0, 4.0, 0.0], Competence(epochs=4, initial=0.3))
    >>> set(list(sampler)[:2]) <= {5, 1, 3, 2}, sorted(sampler.order(epoch=4).tolist())  # difficulties 0, 1, 2, 3; all
    (True, [0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self,
        difficulty: Sequence[float] | Tensor,
        competence: Callable[[float], float],
        *,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        scores = torch.as_tensor(difficulty, dtype=torch.float64).cpu()
        require(scores.ndim == 1, "difficulty", f"shape {tuple(scores.shape)}", "one number per sample")
        require(bool(scores.isfinite().all()), "difficulty", "NaN or infinity in it", "finite numbers")
        super().__init__(len(scores), seed=seed, num_replicas=num_replicas, rank=rank)
        self.difficulty = difficulty
        self.competence = competence
        # Ties by chance, not by place in the dataset, which is often sorted by class.
        shuffled = torch.randperm(self.size, generator=generator_for(seed, -1))
        self._easiest_first = shuffled[torch.argsort(scores[shuffled], stable=True)]

    def order(self, epoch: int) -> Tensor:
        """Return the indices of an epoch, in order, before they are dealt out to ranks."""
        stride = -(-self.size // 1024)  # a million calls of a function would take a second
        steps = [self._pool(epoch + place / self.size) for place in range(0, self.size, stride)]
        require(steps == sorted(steps), "competence", f"one that falls in epoch {epoch}", "one that never falls")
        pools = [pool for pool in steps for _ in range(stride)][: self.size]
        generator = generator_for(self.seed, epoch)
        if pools[0] == self.size:
            return torch.randperm(self.size, generator=generator)
        return self._easiest_first[_draw(pools, torch.rand(self.size, dtype=torch.float64, generator=generator))]

    def _pool(self, time: float) -> int:
        competence = self.competence(time)
        require(0 <= competence <= 1, f"competence({time:g})", competence, "a fraction in [0, 1]")
        return max(1, math.ceil(competence * self.size))


def _draw(pools: list[int], chances: Tensor) -> Tensor:
    """Draw a rank for each place, uniformly from the part of its pool that is left; a pool used up is filled again."""
    left: list[int] = []
    admitted = 0
    drawn = []
    for pool, chance in zip(pools, chances.tolist(), strict=True):
        left.extend(range(admitted, pool))
        admitted = max(admitted, pool)
        if not left:
            left.extend(range(admitted))
        chosen = int(chance * len(left))
        left[chosen], left[-1] = left[-1], left[chosen]
        drawn.append(left.pop())
    return torch.tensor(drawn)
