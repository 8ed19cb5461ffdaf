"""Which layers of torch are which."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

# _NormBase: batch and instance norm of every dimension, synchronized and lazy ones too.
NORM_LAYERS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
CONV_LAYERS: tuple[type[nn.Module], ...] = (_ConvNd,)
