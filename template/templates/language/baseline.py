"""The number to beat: a trigram model with Kneser and Ney's smoothing. ``python -m`` this module prints it.

It knows the train part by heart, as counts of every three bytes in a row, and gives way to two and to one
where it has seen few; the discount is Ney's own estimate. Source: Kneser and Ney 1995; Chen and Goodman 1999.
"""

import torch
from torch import Tensor

from .data import load_parts


def discounted(counts: Tensor, shorter: Tensor) -> Tensor:
    """Take a part of every count, and give it to the next token by the shorter context."""
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = (once / (once + 2 * twice).clamp(min=1)).clamp(min=0.1)  # 0 would make what is new impossible
    total, kinds = counts.sum(-1, keepdim=True), (counts > 0).sum(-1, keepdim=True)
    kept = (counts - discount).clamp(min=0) + discount * kinds * shorter
    return torch.where(total > 0, kept / total.clamp(min=1), shorter)


def trigram(tokens: Tensor, vocabulary: int) -> Tensor:
    """Return the probability of each token after each two: ``[V, V, V]``, from counts of ``tokens``."""
    places = (tokens[:-2] * vocabulary + tokens[1:-1]) * vocabulary + tokens[2:]
    threes = torch.bincount(places, minlength=vocabulary**3).view(vocabulary, vocabulary, vocabulary).double()
    # Kneser and Ney's thought: a shorter context counts after how many different tokens something came.
    twos = (threes > 0).sum(0).double()
    ones = (twos > 0).sum(0).double()
    return discounted(threes, discounted(twos, (ones + 1) / (ones.sum() + vocabulary)))


def baseline_bits() -> float:
    """Return bits a byte on the test part, of a model of the train part."""
    parts = load_parts()
    # Bytes that never occur, not even in the test part, are left out: that is in the baseline's favor.
    kinds, numbered = torch.cat([parts["train"], parts["test"]]).unique(return_inverse=True)
    train, test = numbered.split([len(parts["train"]), len(parts["test"])])
    model = trigram(train, len(kinds))
    return -float(model[test[:-2], test[1:-1], test[2:]].log2().mean())


if __name__ == "__main__":
    print(f"trigram model, Kneser-Ney: test bits a byte {baseline_bits():.4f}")
