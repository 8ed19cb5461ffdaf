"""ActivationPenalty: small activations of chosen layers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from firstlight._require import did_you_mean, require
from firstlight.regularizers._weight_penalty import check_weight


class ActivationPenalty(nn.Module):
    """``weight * sum |activation|`` a sample, over the outputs of chosen layers: pulls towards sparse activations.

    Summed over features and layers, averaged over dimension 0, the batch (as in Keras). Call :meth:`attach` once
    before training: it places hooks on the layers. What they see in a forward pass is penalized when the penalty is
    called after it; the next pass starts from nothing, so closures (LBFGS) and passes for other ends add nothing up.
    A layer used twice in one pass counts twice. Recomputation under activation checkpointing is not counted.

    Shapes: a module to ``[]``. Unit: that of the loss. Computed in float32 or better.
    Law: zero or more; 0 if all watched activations are 0; unchanged by reading it twice and by checkpointing.
    Source: Glorot et al. 2011, "Deep sparse rectifier neural networks" (L1 on activations).

    Args:
        weight: factor of the penalty.
        layers: names of layers of the attached module, or patterns of names (as in :mod:`fnmatch`).

    Raises:
        ValueError: a weight below zero or not finite, no layers; a layer that the module lacks (:meth:`attach`); called
            without a forward pass to penalize.
        TypeError: a watched layer returns something that is not a tensor.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> _ = nn.init.ones_(net[0].weight), nn.init.zeros_(net[0].bias)
    >>> penalty = ActivationPenalty(0.1, layers=["1"]).attach(net)
    >>> _ = net(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    >>> round(penalty(net).item(), 4)  # 0.1 * (3 * 2 + 0) / 2 samples
    0.3
    """

    def __init__(self, weight: float, layers: Sequence[str]) -> None:
        super().__init__()
        check_weight("weight", weight)
        require(not isinstance(layers, str), "layers", layers, "a list of names", error=TypeError)
        require(len(layers) > 0, "layers", layers, "at least one name of a layer")
        self.weight = weight
        self.layers = list(layers)
        self._seen: dict[str, list[Tensor]] = {}  # by layer
        self._handles: list[RemovableHandle] = []
        self._depth = 0  # of nested forward passes of modules that hold watched layers
        self._read = False

    def attach(self, module: nn.Module) -> ActivationPenalty:
        """Watch the layers of ``module``; a second call leaves the first module alone. Return the penalty itself."""
        known = {name: layer for name, layer in module.named_modules() if name and layer is not self}
        chosen: dict[str, nn.Module] = {}
        for pattern in self.layers:
            matches = {name: layer for name, layer in known.items() if fnmatchcase(name, pattern)}
            hint = did_you_mean(pattern, known)
            require(bool(matches), "layers", pattern, f"a name of a layer of {type(module).__name__}{hint}")
            chosen |= matches
        self.detach()
        holders = {name: layer for name, layer in module.named_modules() if _holds(name, chosen)}
        for name, layer in holders.items():
            self._handles.append(layer.register_forward_pre_hook(functools.partial(self._enter, name)))
            self._handles.append(layer.register_forward_hook(self._leave, always_call=True))
        for name, layer in chosen.items():
            self._handles.append(layer.register_forward_hook(functools.partial(self._watch, name)))
        return self

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen, self._depth = [], {}, 0

    def forward(self, module: nn.Module) -> Tensor:
        """Return the weighted penalty of the last forward pass of ``module``."""
        require(
            bool(self._handles),
            "module",
            type(module).__name__,
            "one that this penalty watches: call penalty.attach(module) once before its forward pass",
        )
        require(
            bool(self._seen),
            "module",
            f"{type(module).__name__} without activations to penalize",
            "run forward, with gradients, before the penalty is called (reentrant checkpointing runs without them: "
            "use use_reentrant=False)",
        )
        self._read = True
        return self.weight * torch.stack([term for terms in self._seen.values() for term in terms]).sum()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _enter(self, holder: str, layer: nn.Module, inputs: Any) -> None:
        if self._depth == 0 and not _recomputing():
            self._begin_if_read()
            # Not the layers elsewhere: a step may call an encoder and a decoder one after the other.
            self._seen = {name: terms for name, terms in self._seen.items() if not _is_inside(name, holder)}
        self._depth += 1

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _leave(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._depth -= 1

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _watch(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        require(
            isinstance(output, Tensor), f"the output of {name!r}", type(output).__name__, "a tensor", error=TypeError
        )
        with torch.autocast(output.device.type, enabled=False):
            wide = output.to(torch.promote_types(output.dtype, torch.float32))
            term = wide.abs().sum() / max(1, len(output) if output.ndim else 1)
        # Checkpointing wants the same operations again when it recomputes, so only their result is left out.
        if _recomputing():
            return
        self._begin_if_read()
        self._seen.setdefault(name, []).append(term)

    def _begin_if_read(self) -> None:
        if self._read:
            self._seen, self._read = {}, False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to the pass: tensors inside a graph can be neither copied nor saved."""
        return {**self.__dict__, "_seen": {}, "_depth": 0, "_read": False}

    def extra_repr(self) -> str:
        return f"weight={self.weight}, layers={self.layers}"


def _holds(name: str, chosen: dict[str, nn.Module]) -> bool:
    return any(_is_inside(other, name) for other in chosen)


def _is_inside(name: str, holder: str) -> bool:
    return name != holder and (not holder or name.startswith(f"{holder}."))


def _recomputing() -> bool:
    """Whether a backward pass is running: a forward pass inside it repeats one that was seen."""
    return torch._C._current_graph_task_id() != -1
