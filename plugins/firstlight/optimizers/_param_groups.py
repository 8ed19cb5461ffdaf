"""Parameter groups: which parameters decay, and at what rate each layer learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from firstlight._layers import NORM_LAYERS
from firstlight._require import require

_UNDECAYED_LAYERS = (*NORM_LAYERS, nn.Embedding, nn.EmbeddingBag)


def param_groups(
    module: nn.Module,
    *,
    weight_decay: float | None,
    lr: float | None = None,
    layer_decay: float | None = None,
    no_decay: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Split the trainable parameters of ``module`` into groups that decay and groups that do not.

    Without decay: biases, everything of a normalization layer, embeddings, every tensor of fewer than two dimensions
    (layer scales, gates), and names that match a pattern of ``no_decay`` (as in :mod:`fnmatch`, e.g.
    ``"*.pos_embed"``). Each trainable tensor stands in exactly one group; a tied one goes without decay if any of its
    uses does. Groups carry ``name`` ("decay", "no_decay") for loggers.

    Args:
        module: its parameters are grouped; frozen ones are left out.
        weight_decay: decay of the first group; ``None`` leaves it to the optimizer's own default.
        lr: base rate of the last layer; needed with ``layer_decay``, written into each group when given.
        layer_decay: rate of layer l of L is ``lr * layer_decay ** (L - l)``. The layers are the children of the
            container (``ModuleList`` or ``Sequential``) that holds the most parameters; what comes before it counts
            as layer 0, what comes after as layer L. Names become "decay/3".
        no_decay: patterns of parameter names.

    Raises:
        ValueError: nothing to train, a negative decay, ``layer_decay`` outside (0, 1] or without ``lr``, a pattern
            that matches no parameter.

    Source: no decay on biases and norms, He et al. 2019, arXiv:1812.01187; layer-wise decay, Clark et al. 2020,
    arXiv:2003.10555.

    >>> groups = param_groups(nn.Linear(4, 2), weight_decay=0.1)
    >>> [(group["name"], group["weight_decay"], len(group["params"])) for group in groups]
    [('decay', 0.1, 1), ('no_decay', 0.0, 1)]
    """
    require(weight_decay is None or weight_decay >= 0, "weight_decay", weight_decay, "zero or more")
    patterns = tuple(no_decay)
    owners = _owners(module)
    require(bool(owners), "module", type(module).__name__, "one with at least one trainable parameter")
    for pattern in patterns:
        names = [name for uses in owners.values() for name, _ in uses]
        require(
            any(fnmatchcase(name, pattern) for name in names),
            "no_decay",
            pattern,
            "a pattern that matches a name",
        )
    depth_of, num_layers = _depths(module, layer_decay, lr)
    groups: dict[str, dict[str, Any]] = {}
    for uses in owners.values():
        decays = not any(_is_undecayed(name, layer, patterns) for name, layer in uses)
        parameter_name = uses[0][0]
        depth = depth_of(parameter_name)
        name = ("decay" if decays else "no_decay") + ("" if layer_decay is None else f"/{depth}")
        if name not in groups:
            groups[name] = {"name": name, "params": []}
            if not decays:
                groups[name]["weight_decay"] = 0.0
            elif weight_decay is not None:
                groups[name]["weight_decay"] = weight_decay
            if lr is not None:
                groups[name]["lr"] = lr * (layer_decay or 1.0) ** (num_layers - depth)
        groups[name]["params"].append(module.get_parameter(parameter_name))
    return sorted(groups.values(), key=lambda group: _order(group["name"]))


def _order(name: str) -> tuple[int, bool]:
    kind, _, depth = name.partition("/")
    return int(depth or 0), kind == "no_decay"


def _owners(module: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Map each trainable tensor to its uses, (full name, layer), the first one first."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, layer in module.named_modules():
        for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.requires_grad:
                owners.setdefault(id(parameter), []).append((f"{path}.{name}" if path else name, layer))
    return owners


def _is_undecayed(name: str, layer: nn.Module, patterns: Sequence[str]) -> bool:
    if isinstance(layer, _UNDECAYED_LAYERS) or any(fnmatchcase(name, pattern) for pattern in patterns):
        return True
    leaf = name.rpartition(".")[2]
    parameter: nn.Parameter = getattr(layer, leaf)
    # Recurrent and attention layers have biases of two kinds, bias_ih_l0 and in_proj_bias.
    return parameter.ndim < 2 or leaf.startswith("bias") or leaf.endswith("bias")


def _depths(module: nn.Module, layer_decay: float | None, lr: float | None) -> tuple[Callable[[str], int], int]:
    """Return a function from parameter name to depth, and the depth of the last layer."""
    if layer_decay is None:
        return (lambda _: 0), 0
    require(0 < layer_decay <= 1, "layer_decay", layer_decay, "a factor in (0, 1]")
    require(lr is not None, "lr", lr, "given with layer_decay")
    containers = [
        (sum(p.numel() for p in child.parameters()), path, len(child))
        for path, child in module.named_modules()
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) > 1
    ]
    require(
        bool(containers),
        "layer_decay",
        layer_decay,
        "used on a module with a ModuleList or Sequential of layers",
    )
    # Of containers that hold the same parameters, the innermost has the real layers.
    size = max(containers)[0]
    _, path, num_children = [entry for entry in containers if entry[0] == size][-1]
    prefix = f"{path}." if path else ""
    names = [name for name, _ in module.named_parameters()]
    first = next(index for index, name in enumerate(names) if name.startswith(prefix))
    before = set(names[:first])

    def depth(name: str) -> int:
        if name.startswith(prefix):
            child = name[len(prefix) :].split(".")[0]
            return int(child) + 1 if child.isdigit() else 1
        return 0 if name in before else num_children + 1

    return depth, num_children + 1
