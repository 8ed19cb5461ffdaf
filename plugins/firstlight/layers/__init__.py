"""Layers that regularize: noise and masks on activations and weights."""

from torch.nn import AlphaDropout, Dropout

from firstlight.layers._drop_block import DropBlock2d
from firstlight.layers._drop_connect import DropConnectLinear
from firstlight.layers._drop_path import DropPath
from firstlight.layers._gaussian_noise import GaussianNoise
from firstlight.layers._spatial_dropout import SpatialDropout

__all__ = [
    "AlphaDropout",
    "DropBlock2d",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "GaussianNoise",
    "SpatialDropout",
]
