"""Optimizers: LAMB, torch's own under one roof, and the parameter groups to give them."""

from torch.optim import SGD, Adafactor, Adam, AdamW, RMSprop

from firstlight.optimizers._lamb import LAMB
from firstlight.optimizers._param_groups import param_groups

__all__ = ["LAMB", "SGD", "Adafactor", "Adam", "AdamW", "RMSprop", "param_groups"]

try:  # torch 2.9 brought it
    from torch.optim import Muon
except ImportError:
    pass
else:
    __all__ += ["Muon"]
