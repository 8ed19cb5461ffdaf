"""Parameter groups: which parameters decay, and at what rate each layer learns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from firstlight._layers import NORM_LAYERS
from firstlight._require import require

_UNDECAYED_LAYERS = (*NORM_LAYERS, nn.Embedding, nn.EmbeddingBag)


def param_groups(
    module: nn.Module,
    *,
    weight_decay: float | None,
    lr: float | None = None,
    layer_decay: float | None = None,
    layers: Sequence[str] | None = None,
    no_decay: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Split the trainable parameters of ``module`` into groups that decay and groups that do not.

    Without decay: biases, everything of a normalization layer, embeddings, every tensor of fewer than two dimensions
    (layer scales, gates), and names that match a pattern of ``no_decay`` (as in :mod:`fnmatch`, e.g.
    ``"*.pos_embed"``). Each trainable tensor stands in exactly one group; a tied one goes without decay if any of its
    uses does. Groups carry ``name`` ("decay", "no_decay") for loggers.

    Shapes: parameters as they are, tensors of any shape.
    Unit: ``lr`` and ``weight_decay`` as the optimizer takes them.
    Law: each trainable tensor stands in exactly one group.
    Source: no decay on biases and norms, He et al. 2019, arXiv:1812.01187; layer-wise decay, Clark et al. 2020,
    arXiv:2003.10555.

    Args:
        module: its parameters are grouped; frozen ones are left out. A parametrized tensor is what it stands for.
        weight_decay: decay of the first group; ``None`` leaves it to the optimizer's own default.
        lr: base rate of the last layer; needed with ``layer_decay``, written into each group when given.
        layer_decay: rate of layer l of L is ``lr * layer_decay ** (L - l)``. What comes before the first layer counts
            as layer 0, what comes after the last one as one more. Names become "decay/3".
        layers: names of the layers from input to output, such as ``["layer1", "layer2"]``; default: the children with
            parameters of the container (``ModuleList`` or ``Sequential``) that holds the most parameters.
        no_decay: patterns of parameter names.

    Raises:
        TypeError: ``no_decay`` or ``layers`` is one string instead of a list of them.
        ValueError: nothing to train, a lazy parameter without a shape, a negative decay, ``layer_decay`` outside
            (0, 1] or without ``lr``, a pattern that matches no parameter.

    >>> groups = param_groups(nn.Linear(4, 2), weight_decay=0.1)
    >>> [(group["name"], group["weight_decay"], len(group["params"])) for group in groups]
    [('decay', 0.1, 1), ('no_decay', 0.0, 1)]
    """
    require(weight_decay is None or weight_decay >= 0, "weight_decay", weight_decay, "zero or more")
    require(lr is None or lr >= 0, "lr", lr, "zero or more")
    for argument, value in (("no_decay", no_decay), ("layers", layers)):
        require(not isinstance(value, str), argument, value, "a list of names, such as ['*.scale']", error=TypeError)
    patterns = tuple(no_decay)
    tensors = _tensors(module)
    require(bool(tensors), "module", type(module).__name__, "one with at least one trainable parameter")
    for pattern in patterns:
        matches = any(fnmatchcase(use.name, pattern) for _, uses in tensors for use in uses)
        require(matches, "no_decay", pattern, "a pattern that matches a name")
    depths = _depths(module, layer_decay, layers, lr)
    last = max(depths.values())
    groups: dict[str, dict[str, Any]] = {}
    for tensor, uses in tensors:
        decays = tensor.ndim >= 2 and not any(_is_undecayed(use, patterns) for use in uses)
        depth = depths[uses[0].name]
        name = ("decay" if decays else "no_decay") + ("" if layer_decay is None else f"/{depth}")
        if name not in groups:
            groups[name] = {"name": name, "params": []}
            if not decays:
                groups[name]["weight_decay"] = 0.0
            elif weight_decay is not None:
                groups[name]["weight_decay"] = weight_decay
            if lr is not None:
                groups[name]["lr"] = lr * (layer_decay or 1.0) ** (last - depth)
        groups[name]["params"].append(tensor)
    return sorted(groups.values(), key=lambda group: _order(group["name"]))


@dataclass(frozen=True)
class _Use:
    """One place where a parameter stands."""

    name: str  # its full name
    layer: nn.Module
    leaf: str  # what the layer calls it


def _order(name: str) -> tuple[int, bool]:
    kind, _, depth = name.partition("/")
    return int(depth or 0), kind == "no_decay"


def _tensors(module: nn.Module) -> list[tuple[nn.Parameter, list[_Use]]]:
    """Return each trainable tensor and its uses, the first one first."""
    found: dict[int, tuple[nn.Parameter, list[_Use]]] = {}
    modules = dict(module.named_modules(remove_duplicate=False))
    for path, layer in modules.items():
        for leaf, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
            if not parameter.requires_grad:
                continue
            name = f"{path}.{leaf}" if path else leaf
            lazy = isinstance(parameter, UninitializedParameter)
            require(not lazy, "module", name, "run on one batch first: a lazy parameter has no shape yet")
            if isinstance(layer, ParametrizationList):
                # blocks.0.parametrizations.weight.original stands for blocks.0.weight
                owner, _, stands_for = path.rpartition("parametrizations.")
                use = _Use(name, modules[owner.removesuffix(".")], stands_for)
            else:
                use = _Use(name, layer, leaf)
            found.setdefault(id(parameter), (parameter, []))[1].append(use)
    return list(found.values())


def _is_undecayed(use: _Use, patterns: Sequence[str]) -> bool:
    if isinstance(use.layer, _UNDECAYED_LAYERS) or any(fnmatchcase(use.name, pattern) for pattern in patterns):
        return True
    # Recurrent and attention layers have biases of two kinds, bias_ih_l0 and in_proj_bias.
    return use.leaf.startswith("bias") or use.leaf.endswith("bias")


def _depths(
    module: nn.Module, layer_decay: float | None, layers: Sequence[str] | None, lr: float | None
) -> dict[str, int]:
    """Return the depth of each parameter by its name."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if layer_decay is None:
        require(layers is None, "layers", layers, "given with layer_decay")
        return dict.fromkeys(names, 0)
    require(0 < layer_decay <= 1, "layer_decay", layer_decay, "a factor in (0, 1]")
    require(lr is not None, "lr", lr, "given with layer_decay")
    prefixes = [f"{layer}." for layer in (_layers(module, layer_decay) if layers is None else layers)]
    depths: dict[str, int] = {}
    for name in names:
        depth = next((i for i, prefix in enumerate(prefixes, start=1) if f"{name}.".startswith(prefix)), None)
        if depth is None:
            # Before the first layer, or after it (then most likely the head).
            depth = len(prefixes) + 1 if any(depths.values()) else 0
        depths[name] = depth
    for number, prefix in enumerate(prefixes, start=1):
        require(number in depths.values(), "layers", prefix[:-1], "the name of a layer with parameters")
    return depths


def _layers(module: nn.Module, layer_decay: float) -> list[str]:
    """Return the names of the layers in the container that holds the most parameters."""
    best, found = 0, []
    for path, child in module.named_modules():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            size = sum(p.numel() for p in child.parameters())
            inner = [name for name, layer in child.named_children() if any(True for _ in layer.parameters())]
            # A container of one child is a wrapper; the real layers are further in.
            if len(inner) > 1 and size > best:
                best, found = size, [f"{path}.{name}" if path else name for name in inner]
    require(bool(found), "layer_decay", layer_decay, "used with layers=[...], or a ModuleList or Sequential of layers")
    return found
