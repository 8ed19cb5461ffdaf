"""Optimizers: torch's own under one roof, and the parameter groups to give them."""

from torch.optim import SGD, Adafactor, Adam, AdamW, RMSprop

from firstlight.optimizers._param_groups import param_groups

__all__ = ["SGD", "Adafactor", "Adam", "AdamW", "RMSprop", "param_groups"]
