"""max_norm_: a bound on the incoming weights of each unit."""

from __future__ import annotations

import torch
from torch import nn

from firstlight._require import require
from firstlight.regularizers._units import check_settable, incoming


@torch.no_grad()
def max_norm_(module: nn.Module, limit: float) -> nn.Module:
    """Scale down, in place, the incoming weights of each unit whose Euclidean norm is above ``limit``.

    For use after each optimizer step. A unit is an output of a linear or convolutional layer (grouped and transposed
    ones too), a gate of a recurrent one, the vector of a token of an embedding; :func:`incoming` lists the axes.
    Biases, norm layers and frozen weights stay, tied weights count once, and so do weights of layers that are not
    torch's, since their axes are not known.

    Shapes: a module to itself. Unit: that of the weights.
    Law: afterwards no norm is above ``limit`` (up to rounding); the direction of each unit's weights stays; weights
    within the bound keep every bit, which Keras's formula does not give.
    Source: Srebro and Shraibman 2005; with dropout, Srivastava et al. 2014.

    Raises:
        ValueError: a limit that is not above zero; parametrized or lazy layers.

    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    >>> max_norm_(layer, 1.0).weight.data
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    require(0 < limit < float("inf"), "limit", limit, "above zero, and finite")
    seen: set[int] = set()
    for path, layer in module.named_modules():
        check_settable(layer, path, "max_norm_")
        for weight, view, dims in incoming(layer):
            if not weight.requires_grad or id(weight) in seen:
                continue
            seen.add(id(weight))
            norm = torch.linalg.vector_norm(
                view, dim=dims, keepdim=True, dtype=torch.promote_types(view.dtype, torch.float32)
            )
            # A factor of exactly 1 changes no bit.
            view.mul_(torch.where(norm > limit, limit / norm, 1.0))
    return module
