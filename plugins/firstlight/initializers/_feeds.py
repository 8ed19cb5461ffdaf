"""What each layer feeds: the activation that its output meets first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from firstlight._layers import CONV_LAYERS

WEIGHTED_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Bilinear, *CONV_LAYERS)

_BY_LAYER: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "relu",
    nn.RReLU: "relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.ELU: "elu",
    nn.CELU: "elu",
    nn.SELU: "selu",
    nn.Softplus: "softplus",
    nn.Hardswish: "hardswish",
    nn.Tanh: "tanh",
    nn.Hardtanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "sigmoid",
}
_BY_FUNCTION: dict[Callable[..., Any], str] = {
    **{
        getattr(namespace, name): kind
        for kind, names in {
            "relu": ("relu", "relu_", "relu6", "prelu", "rrelu"),
            "leaky_relu": ("leaky_relu", "leaky_relu_"),
            "gelu": ("gelu",),
            "silu": ("silu",),
            "mish": ("mish",),
            "elu": ("elu", "elu_", "celu"),
            "selu": ("selu",),
            "softplus": ("softplus",),
            "hardswish": ("hardswish",),
            "tanh": ("tanh", "tanh_", "hardtanh"),
            "sigmoid": ("sigmoid", "sigmoid_", "hardsigmoid"),
        }.items()
        for name in names
        for namespace in (torch, F, Tensor)
        if hasattr(namespace, name)
    }
}


def feeds_by_order(module: nn.Module) -> dict[str, str]:
    """Guess, from the order of registration: the next activation before the next weighted layer.

    Where the module shows no activation at all (they are functions inside ``forward``) every layer but the last is
    taken to feed a ReLU; a layer that is followed by nothing feeds "linear".
    """
    names: dict[str, str] = {}
    open_layer: str | None = None
    found_any = False
    for name, layer in module.named_modules():
        if isinstance(layer, WEIGHTED_LAYERS):
            if open_layer is not None:
                names[open_layer] = "unseen"
            open_layer = name
        elif type(layer) in _BY_LAYER:
            found_any = True
            if open_layer is not None:
                names[open_layer] = _BY_LAYER[type(layer)]
                open_layer = None
    if open_layer is not None:
        names[open_layer] = "linear"
    hidden = "linear" if found_any else "relu"
    return {name: hidden if kind == "unseen" else kind for name, kind in names.items()}


def feeds_by_trace(module: nn.Module, example_input: Any) -> dict[str, str]:
    """Follow the tensors of one forward pass from each weighted layer to the first activation they meet.

    Sees activations called as functions. The module is left as it was: the pass runs without gradients, in eval
    mode, and modes are put back.
    """
    trace = _Trace()
    handles = [
        layer.register_forward_hook(trace.leaves(name))
        for name, layer in module.named_modules()
        if isinstance(layer, WEIGHTED_LAYERS)
    ]
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        module.eval()
        with torch.no_grad(), trace:
            if isinstance(example_input, Mapping):
                module(**example_input)
            else:
                module(*(example_input if isinstance(example_input, (tuple, list)) else (example_input,)))
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in modes:
            layer.training = training
    return trace.feeds


class _Trace(TorchFunctionMode):
    """Tags each tensor with the layers whose output it carries, until an activation takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.feeds: dict[str, str] = {}
        self._tags: dict[int, tuple[Tensor, frozenset[str]]] = {}  # keeps the tensor, so that ids stay its own

    def leaves(self, name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.feeds.setdefault(name, "linear")
            self._tags[id(output)] = (output, frozenset([name]))

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        sources = frozenset[str]().union(*(self._tags[id(t)][1] for t in _tensors(args) if id(t) in self._tags))
        if sources:
            activation = _BY_FUNCTION.get(func)
            if activation is not None:
                self.feeds.update({name: activation for name in sources if self.feeds[name] == "linear"})
            for tensor in _tensors((output,)):
                self._tags[id(tensor)] = (tensor, frozenset() if activation is not None else sources)
        return output


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found.extend(_tensors(value))
    return found
