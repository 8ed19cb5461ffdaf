"""Layers that regularize: noise and masks on activations and weights."""

from torch.nn import AlphaDropout, Dropout

__all__ = ["AlphaDropout", "Dropout"]
