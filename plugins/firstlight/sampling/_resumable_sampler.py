"""ResumableSampler: a shuffled order that can be entered anywhere."""

from __future__ import annotations

from collections.abc import Sized

import torch
from torch import Tensor

from firstlight.sampling._sharded_order import ShardedOrder, generator_for


class ResumableSampler(ShardedOrder):
    """Each sample once an epoch, in an order that ``(seed, epoch)`` decides: stop anywhere, go on there.

    Takes the place of ``shuffle=True`` and of :class:`torch.utils.data.DistributedSampler` in a ``DataLoader``.
    The epoch moves on by itself when an iteration has run to its end, and ``set_epoch`` (which Lightning calls) chooses
    one; the state of a run on R ranks goes on on any other number of ranks.

    Shapes: a dataset of N samples to ``ceil(N / num_replicas)`` indices a rank. Unit: samples.
    Law: a run stopped at any sample and resumed draws what the unbroken run draws; the ranks' shares together are each
    sample once, and the first ``-N mod num_replicas`` once more.
    Source: none; the order is :func:`torch.randperm`'s.

    Raises:
        ValueError: an empty dataset; a rank outside the number of replicas, or only one of the two given.

    >>> whole = list(ResumableSampler(range(10), seed=1))
    >>> sampler = ResumableSampler(range(10), seed=1)
    >>> sampler.load_state_dict({"seed": 1, "epoch": 0, "place": 4, "size": 10})
    >>> list(sampler) == whole[4:], len(sampler)
    (True, 10)
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(len(dataset), seed=seed, num_replicas=num_replicas, rank=rank)
        self.shuffle = shuffle

    def order(self, epoch: int) -> Tensor:
        """Return the indices of an epoch, in order, before they are dealt out to ranks."""
        if not self.shuffle:
            return torch.arange(self.size)
        return torch.randperm(self.size, generator=generator_for(self.seed, epoch))
