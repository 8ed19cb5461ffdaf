"""OrthogonalPenalty: weights whose units point in different directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from firstlight.regularizers._weight_penalty import check_weight


class OrthogonalPenalty(nn.Module):
    """``weight * sum ||W W^T - I||**2`` (Frobenius) over the matrices of a module.

    The matrices: weights of linear layers; of convolutions as ``[out, in k...]`` and of each group alone; of recurrent
    layers gate by gate; of attention's packed projection query, key and value each. A matrix with more rows than
    columns is penalized as ``W^T W - I``, since its rows cannot all be orthogonal. Embeddings, norm layers, biases and
    frozen weights do not count, tied ones once.

    Shapes: a module to ``[]``. Unit: that of the loss. Computed in float32 or better.
    Law: zero or more; 0 for matrices with orthonormal rows or columns (:func:`torch.nn.init.orthogonal_`);
    unchanged by a rotation of inputs or outputs.
    Source: Bansal et al. 2018, arXiv:1810.09102 (soft orthogonality); Brock et al. 2017, arXiv:1609.07093.

    Raises:
        ValueError: a weight below zero or not finite.

    >>> layer = nn.Linear(3, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    >>> OrthogonalPenalty(0.5)(layer).item()  # W W^T - I = [[0, 1], [1, 1]]
    1.5
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.weight = weight

    def forward(self, module: nn.Module) -> Tensor:
        """Return the weighted penalty of ``module``, a float32 (or wider) scalar; 0 if it has no matrices."""
        found = _matrices(module)
        if not found:
            return torch.zeros(())
        with torch.autocast(found[0].device.type, enabled=False):
            return self.weight * torch.stack([_distance(matrix) for matrix in found]).sum()

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def _distance(matrices: Tensor) -> Tensor:
    """Return ``||W W^T - I||**2``, of the smaller of the two products, summed over a stack ``[B, rows, columns]``."""
    wide = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    rows, columns = wide.shape[-2:]
    gram = wide @ wide.mT if rows <= columns else wide.mT @ wide
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().sum()


def _matrices(module: nn.Module) -> list[Tensor]:
    """Return the matrices of ``module``, each as a stack ``[B, rows, columns]``."""
    seen: set[int] = set()
    found = []
    for layer in module.modules():
        for name, weight in layer.named_parameters(recurse=False):
            if (
                weight.requires_grad
                and id(weight) not in seen
                and (matrices := _stack(layer, name, weight)) is not None
            ):
                seen.add(id(weight))
                found.append(matrices)
    return found


def _stack(layer: nn.Module, name: str, weight: Tensor) -> Tensor | None:
    if isinstance(layer, _ConvTransposeNd) and name == "weight":  # [in, out/g, *k], the groups in dimension 0
        return _split(weight, layer.groups).transpose(1, 2).flatten(2)
    if isinstance(layer, _ConvNd) and name == "weight":
        return _split(weight, layer.groups).flatten(2)
    if isinstance(layer, nn.Linear) and name == "weight":
        return weight.unsqueeze(0)
    if isinstance(layer, nn.MultiheadAttention) and name.endswith("proj_weight"):
        return _split(weight, 3 if name == "in_proj_weight" else 1)
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)) and name.startswith(("weight_ih", "weight_hh")):
        return _split(weight, len(weight) // layer.hidden_size)
    return weight.unsqueeze(0) if name.startswith("weight_hr") else None


def _split(weight: Tensor, count: int) -> Tensor:
    return weight.reshape(count, -1, *weight.shape[1:])
