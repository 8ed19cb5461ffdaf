"""What each layer feeds, read from the order of registration: the activation that its output meets first."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight._layers import CONV_LAYERS, NORM_LAYERS
from firstlight.initializers._gain import gain, packed_gain, slope

WEIGHTED_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Bilinear, *CONV_LAYERS)
RECURRENT_LAYERS: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)
_ENCLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
# More plain layers in a row than this, and a static gain no longer holds the signal where the fixed point is unstable.
MAX_PLAIN_LAYERS = 10

_BY_LAYER: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
    nn.Threshold: "threshold",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.Softplus: "softplus",
    nn.Hardswish: "hardswish",
    nn.Tanh: "tanh",
    nn.Hardtanh: "hardtanh",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Softsign: "softsign",
    nn.LogSigmoid: "logsigmoid",
    nn.Tanhshrink: "tanhshrink",
    nn.Softshrink: "softshrink",
    nn.Hardshrink: "hardshrink",
    nn.GLU: "glu",
}
_NAMES_OF_FUNCTIONS = {
    **{name: name.rstrip("_") for name in ("relu_", "leaky_relu_", "elu_", "tanh_", "sigmoid_")},
    **{name: name for name in set(_BY_LAYER.values()) - {"glu"}},
    "glu": "glu",
}
BY_FUNCTION: dict[Callable[..., Any], str] = {
    getattr(namespace, function): activation
    for function, activation in _NAMES_OF_FUNCTIONS.items()
    for namespace in (torch, F, Tensor)
    if hasattr(namespace, function)
}


class Feed(NamedTuple):
    """The activation that a layer feeds and the gain for it."""

    activation: str
    gain: float


LINEAR = Feed("linear", 1.0)
RELU = Feed("relu", gain("relu"))


def activation_name(layer: object) -> str | None:
    """Return the name of the activation that ``layer``, a module or function, is; or ``None``."""
    if isinstance(layer, nn.Module):
        name = next((_BY_LAYER[cls] for cls in type(layer).__mro__ if cls in _BY_LAYER), None)
        return "gelu_tanh" if isinstance(layer, nn.GELU) and layer.approximate == "tanh" else name
    return BY_FUNCTION.get(layer) if callable(layer) else None


def feed_of(activation: object) -> Feed | None:
    """Return the feed of a layer before ``activation``, a module or function; or ``None`` if it is no activation."""
    name = activation_name(activation)
    if name is None:
        return None
    if name == "glu":  # the layer before nn.GLU holds both halves
        return Feed(name, packed_gain(name))
    if not isinstance(activation, nn.Module):
        return Feed(name, gain(name))
    if isinstance(activation, nn.PReLU):
        return Feed(name, gain(activation))
    return Feed(name, _of_layer(_Shown(activation)))


class _Shown:
    """A layer that equals those of its type with the same arguments, so that their gain is computed once."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.key = (type(layer), layer.extra_repr())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shown) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=256)
def _of_layer(shown: _Shown) -> float:
    return gain(shown.layer)


def known_feeds(module: nn.Module) -> dict[str, Feed]:
    """Return the feeds inside torch's own transformer layers, whose order of registration misleads."""
    known: dict[str, Feed] = {}
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(layer, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            known[f"{prefix}linear1"] = feed_of(layer.activation) or RELU
    return known


def feeds_by_order(module: nn.Module) -> dict[str, Feed]:
    """Guess, from the order of registration: the next activation before the next weighted layer.

    Where the module shows no activation at all (they are functions inside ``forward``) every layer but the last is
    taken to feed a ReLU; a layer that is followed by nothing, by attention or by a recurrent layer feeds "linear".
    Nothing is guessed inside torch's attention and transformer layers: what is not named feeds "linear" there.
    """
    found: dict[str, Feed | None] = {}
    open_layer: str | None = None
    found_any = False
    inside = "\0"
    for name, layer in module.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(layer, (*_ENCLOSED, *RECURRENT_LAYERS)):
            inside = f"{name}." if name else ""
            if open_layer is not None:
                found[open_layer] = LINEAR
            open_layer = None
        elif isinstance(layer, WEIGHTED_LAYERS):
            if open_layer is not None:
                found[open_layer] = None
            open_layer = name
        elif (feed := feed_of(layer)) is not None:
            found_any = True
            if open_layer is not None:
                found[open_layer] = feed
                open_layer = None
    if open_layer is not None:
        found[open_layer] = LINEAR
    hidden = LINEAR if found_any else RELU
    return {name: hidden if feed is None else feed for name, feed in found.items()} | known_feeds(module)


def warnings_by_order(module: nn.Module) -> list[str]:
    """Warn of each ``nn.Sequential`` with too many plain layers in a row; other modules may add residuals unseen."""
    warnings = []
    for name, layer in module.named_modules():
        parent = module.get_submodule(name.rpartition(".")[0]) if name else None
        if not isinstance(layer, nn.Sequential) or isinstance(parent, nn.Sequential):
            continue
        longest, run, worst = 0, 0, ""
        for part in _flat(layer):
            activation = activation_name(part)
            if isinstance(part, NORM_LAYERS) or next(itertools.islice(part.children(), 1), None) is not None:
                run = 0
            elif activation is not None:
                run = next_run(run, activation)
            if run > longest:
                longest, worst = run, activation or ""
        if longest > MAX_PLAIN_LAYERS:
            warnings.append(plain_layers_warning(name, longest, worst))
    return warnings


def _flat(layer: nn.Sequential) -> Iterator[nn.Module]:
    for part in layer:
        if isinstance(part, nn.Sequential):
            yield from _flat(part)
        else:
            yield part


def next_run(run: int, activation: str) -> int:
    """Count plain layers in a row whose static gain is unstable; ReLU and its kin neither count nor mend."""
    if activation == "threshold":
        return run
    growth = slope(activation)
    return run + 1 if growth > 1.01 else 0 if growth < 0.99 else run


def plain_layers_warning(name: str, run: int, activation: str) -> str:
    where = f"in {name!r}: " if name else ""
    return (
        f"{where}{run} layers with {activation} in a row without norm or residual: no static gain can hold their "
        f"signal (a deviation grows {slope(activation):.2f} times a layer). Add norm layers or residuals, or call lsuv_"
    )
