"""What each layer feeds, followed through one forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from firstlight._rng import isolated_rng
from firstlight.initializers._feeds import (
    BY_FUNCTION,
    LINEAR,
    MAX_PLAIN_LAYERS,
    WEIGHTED_LAYERS,
    Feed,
    next_run,
    plain_layers_warning,
)
from firstlight.initializers._gain import GATED, gain, packed_gain


def call(module: nn.Module, batch: Any) -> Any:
    """Call ``module`` on a tensor, a tuple or list of arguments, or a mapping of keywords."""
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*(batch if isinstance(batch, (tuple, list)) else (batch,)))


@contextmanager
def left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Run a block without gradients and without lasting changes to modes, buffers and random number generators."""
    modes = [(layer, layer.training) for layer in module.modules()]
    # The buffers of a parametrization belong to the weight: an initializer may change them.
    named = [(name, b) for name, b in module.named_buffers() if "parametrizations" not in name.split(".")]
    buffers = [(b, b.detach().clone()) for _, b in named if not nn.parameter.is_lazy(b) and not b.is_meta]
    unmade = [layer for layer in module.modules() if any(map(nn.parameter.is_lazy, layer.buffers(recurse=False)))]
    compiled = any(hasattr(layer, "_orig_mod") or layer._compiled_call_impl is not None for layer in module.modules())
    # Compiled code does not call hooks that came later.
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    try:
        with isolated_rng(), torch.no_grad(), eager:
            yield
    finally:
        for layer, training in modes:
            layer.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            for layer in unmade:  # lazy norm layers, made in the block
                if isinstance(layer, _NormBase):
                    layer.reset_running_stats()


def feeds_by_trace(module: nn.Module, example_input: Any) -> tuple[dict[str, Feed], list[str]]:
    """Follow the tensors of one forward pass from each weighted layer to the first activation they meet.

    Sees activations called as functions. The module is left as it was: the pass runs without gradients, in eval
    mode, and modes, buffers and generators are put back. Returns the feeds and warnings.
    """
    trace = _Trace()
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, WEIGHTED_LAYERS):
            handles.append(layer.register_forward_hook(trace.leaves(name)))
        elif isinstance(layer, nn.MultiheadAttention):  # calls its out_proj as a function of plain tensors
            handles.append(layer.register_forward_hook(trace.leaves(f"{name}.out_proj" if name else "out_proj")))
    try:
        with left_as_it_was(module):
            module.eval()
            trace.starts(example_input)
            with trace:
                call(module, example_input)
    finally:
        for handle in handles:
            handle.remove()
    warnings = []
    if trace.longest > MAX_PLAIN_LAYERS:
        warnings.append(plain_layers_warning("", trace.longest, trace.worst))
    return trace.feeds, warnings


@dataclass(frozen=True)
class _Carry:
    """What a tensor carries: layers that met no activation yet; layers whose activation it is; its input; the depth."""

    open: frozenset[str] = frozenset()
    active: frozenset[str] = frozenset()
    activation: str = ""
    origin: int = 0
    run: int = 0


_NORMS = (F.layer_norm, F.batch_norm, F.group_norm, F.instance_norm, F.rms_norm, F.normalize, torch.rsqrt, Tensor.rsqrt)
_ADDS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__)
_MULS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__)
_POWERS = (torch.pow, Tensor.pow, Tensor.__pow__)
_SQUARES = (torch.square, Tensor.square)
_KEEPS_ACTIVE = (F.dropout, Tensor.view, Tensor.reshape, Tensor.contiguous, Tensor.to, Tensor.float)


class _Trace(TorchFunctionMode):
    """Marks each tensor with the layers whose output it carries, until an activation takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.feeds: dict[str, Feed] = {}
        self.longest, self.worst = 0, ""
        self._marks: dict[int, tuple[Tensor, _Carry]] = {}  # keeps the tensor, so that ids stay its own

    def leaves(self, name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            self.feeds.setdefault(name, LINEAR)
            run = max((self._of(t).run for t in tensors_in(inputs)), default=0)
            self._marks[id(tensor)] = (tensor, _Carry(frozenset([name]), run=run))

        return hook

    def starts(self, batch: Any) -> None:
        """Know the inputs, so that adding them to something counts as a residual."""
        self._marks.update((id(tensor), (tensor, _Carry())) for tensor in tensors_in((batch,)))

    def _of(self, tensor: Tensor) -> _Carry:
        return self._marks[id(tensor)][1] if id(tensor) in self._marks else _Carry()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        inputs = [t for t in tensors_in((*args, *kwargs.values())) if id(t) in self._marks]
        if inputs:
            carry = self._carry(func, args, kwargs, inputs)
            for tensor in tensors_in((output,)):
                self._marks[id(tensor)] = (tensor, carry)
        return output

    def _carry(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> _Carry:
        carries = [self._of(t) for t in inputs]
        merged = _Carry(frozenset[str]().union(*(c.open for c in carries)), run=max(c.run for c in carries))
        activation = BY_FUNCTION.get(func)
        if activation == "gelu" and "tanh" in (*args[1:], *kwargs.values()):
            activation = "gelu_tanh"
        if activation is not None:
            return self._activated(merged, activation, _gain_of_call(func, activation, args, kwargs), id(inputs[0]))
        if func in _NORMS:
            return replace(merged, run=0)
        twice = len(inputs) == 2 and inputs[0] is inputs[1]
        squared = func in _SQUARES or (func in _POWERS and args[1] == 2) or (func in _MULS and twice)
        if squared and carries[0].active and carries[0].activation == "relu":
            self._set(carries[0].active, Feed("relu_squared", gain("relu_squared")))
            return _Carry(run=self._count(merged.run, "relu_squared"))
        if func in _MULS and len(inputs) == 2:
            for (value, tensor), gate in (
                ((carries[0], inputs[0]), carries[1]),
                ((carries[1], inputs[1]), carries[0]),
            ):
                if gate.active and value.open and not value.active:
                    return self._gated(value, gate, merged, same_tensor=gate.origin == id(tensor))
        if func in _ADDS and len(inputs) == 2:  # a residual
            return replace(merged, run=0)
        if func in _KEEPS_ACTIVE:
            return replace(carries[0], run=merged.run)
        return merged

    def _activated(self, merged: _Carry, activation: str, factor: float, origin: int) -> _Carry:
        met = frozenset(name for name in merged.open if self.feeds[name] == LINEAR)
        self._set(met, Feed(activation, factor))
        return _Carry(frozenset(), met, activation, origin, self._count(merged.run, activation))

    def _gated(self, value: _Carry, gate: _Carry, merged: _Carry, *, same_tensor: bool) -> _Carry:
        """A value times f(gate): the gate stays at unit variance, the value makes up for f."""
        unit = GATED.get(gate.activation)
        if same_tensor and gate.activation == "sigmoid":  # x * sigmoid(x) is SiLU, spelled out
            self._set(gate.active, Feed("silu", gain("silu")))
            return _Carry(run=self._count(merged.run, "silu"))
        if unit is not None and value.open == gate.active:  # both halves come from one layer
            self._set(gate.active, Feed(unit, packed_gain(unit)))
        elif unit is not None and not value.open & gate.active:
            self._set(gate.active, Feed("gate", 1.0))
            self._set(value.open, Feed(unit, gain(unit)))
        return _Carry(run=merged.run)

    def _set(self, names: frozenset[str], feed: Feed) -> None:
        self.feeds.update(dict.fromkeys(names, feed))

    def _count(self, run: int, activation: str) -> int:
        run = next_run(run, activation)
        if run > self.longest:
            self.longest, self.worst = run, activation
        return run


def _gain_of_call(func: Any, activation: str, args: Any, kwargs: Any) -> float:
    """The gain of an activation called with these arguments: ``F.leaky_relu(x, 0.2)``."""
    if activation == "glu":
        return packed_gain("glu")
    extra, named = args[1:], {key: value for key, value in kwargs.items() if key not in ("input", "inplace", "out")}
    if activation == "prelu":
        layer = nn.PReLU(1)
        slopes = (*extra, *named.values())[0]
        layer.weight = nn.Parameter(slopes.detach(), requires_grad=False)
        return gain(layer)
    if activation == "rrelu" or not (extra or named):
        return gain(activation)
    if any(isinstance(value, Tensor) for value in (*extra, *named.values())):
        return gain(activation) if activation != "threshold" else gain("relu")
    return _of_call(func, extra, tuple(named.items()))


@functools.lru_cache(maxsize=256)
def _of_call(func: Any, extra: Any, named: Any) -> float:
    return gain(functools.partial(_call, func, extra, dict(named)))


def _call(func: Any, extra: Any, named: Any, z: Tensor) -> Tensor:
    result: Tensor = func(z, *extra, **named)
    return result


def tensors_in(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found.extend(tensors_in(value))
        elif isinstance(value, Mapping):
            found.extend(tensors_in(value.values()))
    return found
