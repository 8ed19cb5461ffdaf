"""What the samplers share: an order that is a function of the epoch, dealt out to ranks, entered at any place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler

from firstlight._require import require


class ShardedOrder(DistributedSampler[int]):
    """A sampler whose order is ``f(seed, epoch)``: nothing else needs to be saved to go on from any place.

    Rank r of R takes every R-th index of the one order, from place r on. An order that R does not divide is filled up
    from its own start, so that all ranks draw equally often and no sample is lost. It is a
    :class:`torch.utils.data.DistributedSampler`, so Lightning shards it no second time and calls ``set_epoch``.
    """

    def __init__(self, size: int, *, seed: int, num_replicas: int | None, rank: int | None) -> None:
        # Not DistributedSampler's own: that wants a process group, and there is none yet where files are read.
        require(size >= 1, "dataset", f"{size} samples", "one with at least one sample")
        require(num_replicas is None or num_replicas >= 1, "num_replicas", num_replicas, "one or more, or None")
        require((num_replicas is None) == (rank is None), "rank", rank, "given together with num_replicas")
        if num_replicas is not None and rank is not None:
            require(0 <= rank < num_replicas, "rank", rank, f"from 0 to num_replicas - 1 = {num_replicas - 1}")
        self.size = size
        self.seed = seed
        self.epoch = 0
        self._given = None if num_replicas is None or rank is None else (num_replicas, rank)
        self._start = 0  # places of the order, over all ranks, that are gone when iteration begins
        self._place = 0  # places that are gone by now
        self._exhausted = False

    @abstractmethod
    def order(self, epoch: int) -> Tensor:
        """Return the indices of an epoch, in order, before they are dealt out to ranks."""

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """The number of ranks: as given, else that of the process group, else 1."""
        return self._ranks()[0]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """The rank of this process: as given, else that in the process group, else 0."""
        return self._ranks()[1]

    def _ranks(self) -> tuple[int, int]:
        if self._given is not None:
            return self._given
        if dist.is_available() and dist.is_initialized():
            return dist.get_world_size(), dist.get_rank()
        return 1, 0

    def __len__(self) -> int:
        """Return the samples of a whole epoch on this rank; the same on all ranks, and after a resume."""
        return -(-self.size // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        if self._exhausted:
            self.set_epoch(self.epoch + 1)
        num_replicas, rank = self._ranks()
        self._place = start = self._start
        # Counted from the start: a state saved on another number of ranks may leave any number of samples.
        total = start + -(-max(0, self.size - start) // num_replicas) * num_replicas
        order = self.order(self.epoch)
        if total > self.size:
            order = order.repeat(-(-total // self.size))
        for index in order[start + rank : total : num_replicas].tolist():
            self._place += num_replicas
            yield index
        self._exhausted = True

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; one other than the current one starts at its beginning."""
        if epoch != self.epoch or self._exhausted:
            self._start = self._place = 0
            self._exhausted = False
        self.epoch = epoch

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Return the place in the order as plain values; it fits any number of ranks.

        Args:
            consumed: samples of this epoch that this rank has trained on. Needed with worker processes, which draw
                ahead of the training; without them the sampler's own count is right.
        """
        place = self._place if consumed is None else consumed * self.num_replicas
        return {"seed": self.seed, "epoch": self.epoch, "place": place, "size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the place of ``state``.

        Raises:
            ValueError: a state of other data (another number of samples) or of another seed.
        """
        for key in ("size", "seed"):
            mine = getattr(self, key)
            require(state[key] == mine, f"the state's {key}", state[key], f"that of this sampler, {mine}")
        self.epoch = state["epoch"]
        self._start = self._place = state["place"]
        self._exhausted = self._place >= self.size


def generator_for(seed: int, epoch: int) -> torch.Generator:
    """Return a generator for the pair; ``seed + epoch`` would make epoch 1 of seed 0 epoch 0 of seed 1."""
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9) % 2**63)
