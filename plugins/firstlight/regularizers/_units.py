"""Which entries of a weight belong to one unit: its incoming weights."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from firstlight._require import require

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def incoming(layer: nn.Module) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...]]]:
    """Yield each weight of a layer of torch, a view of it, and the dimensions of the view that one unit sums over.

    Linear ``[out, in]``: 1. Bilinear ``[out, in1, in2]``: 1, 2. Convolutions ``[out, in/g, *k]``: all but 0.
    Transposed convolutions are ``[in, out/g, *k]``, viewed as ``[g, in/g, out/g, *k]``: 1 and 3 on. Embeddings: a row
    is the vector of a token. Recurrent ``[gates * H, *]``, also of projections, and attention's ``[3 E, E]``: rows.
    """
    if isinstance(layer, _ConvTransposeNd):
        view = layer.weight.view(layer.groups, -1, *layer.weight.shape[1:])
        yield layer.weight, view, (1, *range(3, view.ndim))
        return
    if isinstance(layer, (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, _ConvNd)):
        names = ["weight"]
    elif isinstance(layer, (*_RECURRENT, nn.MultiheadAttention)):
        names = [name for name, value in layer.named_parameters(recurse=False) if "weight" in name]
    else:
        return
    for name in names:
        weight = getattr(layer, name)
        yield weight, weight, tuple(range(1, weight.ndim))


def check_settable(layer: nn.Module, path: str, function: str) -> None:
    """Raise ``ValueError`` where writing into the weights of ``layer`` would do nothing: it is computed from others."""
    where = f"{type(layer).__name__} {path!r}" if path else type(layer).__name__
    hooked = any(name.endswith(("_orig", "_g")) for name, _ in layer.named_parameters(recurse=False))  # older torch's
    require(
        not is_parametrized(layer) and not hooked,
        "module",
        f"{where}, which is parametrized",
        f"without parametrized layers: their weights are computed anew at each use, so {function} cannot hold them; "
        "remove the parametrization, or pass the other submodules one by one",
    )
    lazy = any(is_lazy(parameter) for parameter in layer.parameters(recurse=False))
    require(
        not lazy,
        "module",
        f"{where}, which is lazy",
        f"materialized by one forward pass before {function}",
    )
