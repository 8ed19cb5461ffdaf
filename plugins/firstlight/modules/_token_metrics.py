"""Means over tokens, however many of them each batch has."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

# torchmetrics' own MeanMetric looks for NaN on the host at every update, and with nan_strategy="disable", which does
# not, it drops the weights (1.9.0). Its Perplexity wants all logits.


class TokenMean(Metric):
    """The mean over all tokens of an epoch and all ranks, from means over the tokens of each batch.

    Law: ``sum(value * tokens) / sum(tokens)``; NaN where there is no token.
    """

    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, value: Tensor, tokens: Tensor) -> None:
        # Not in place: after `trainer.validate` these are inference tensors, which may not be written to in `fit`.
        self.total = self.total + value * tokens
        self.tokens = self.tokens + tokens

    def compute(self) -> Tensor:
        return self.total / self.tokens


class Perplexity(TokenMean):
    """``exp`` of the mean: among how many equally likely tokens the model still has to guess."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerToken(TokenMean):
    """The mean in bits: what a token costs a compressor that uses the model."""

    def compute(self) -> Tensor:
        return super().compute() / math.log(2)
