"""lsuv_: unit variance for the output of each layer, on a batch, in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from firstlight._layers import NORM_LAYERS
from firstlight._require import require
from firstlight.initializers._draw import draw_orthogonal
from firstlight.initializers._fans import slots
from firstlight.initializers._feeds import WEIGHTED_LAYERS
from firstlight.initializers._report import InitReport, InitRow
from firstlight.initializers._trace import call, left_as_it_was, tensors_in
from firstlight.initializers._write import at_rest, key, originals, reason_to_leave, write


def lsuv_(
    module: nn.Module,
    batch: Any,
    *,
    tolerance: float = 0.1,
    max_attempts: int = 10,
    skip: Sequence[str] = (),
    generator: torch.Generator | None = None,
) -> InitReport:
    """Scale every linear and convolutional layer so that its output on ``batch`` has unit variance.

    Each weight starts orthonormal with zero bias and is divided by the standard deviation of the layer's output
    until the variance is within ``tolerance`` of 1. This happens inside one forward pass, at the moment each layer is
    called: in the order of execution, with inputs that are final already. Where a layer is called again, or its
    tensor is used by another layer, the first call counts. Branches of residual blocks get unit variance each; the
    sum still grows with their number, for which see :func:`residual_scaled_`.

    The pass sees batch statistics in norm layers and no dropout. Modes, buffers (running statistics) and generators
    are as before; an error leaves the weights as before, too.

    Args:
        module: with linear and convolutional layers anywhere in it.
        batch: a tensor, a tuple of arguments or a mapping of keywords, on the device of the module.
        tolerance: of the variance.
        max_attempts: calls of a layer besides the one of the forward pass.
        skip: patterns of layers to leave alone, as in :mod:`fnmatch`.
        generator: of the orthonormal start; default: torch's global one, whose state is put back.

    Shapes: what ``module`` takes, with two different samples or more.
    Unit: standard deviations of outputs; the report has a row a layer, with the number of calls.
    Law: ``abs(var(output) - 1) < tolerance`` for each layer that was reached.
    Source: Mishkin and Matas 2015, arXiv:1511.06422.

    Raises:
        ValueError: a tolerance outside (0, 1), fewer than one attempt, or a batch without variance.

    >>> net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))
    >>> report = lsuv_(net, torch.randn(256, 8))
    >>> all(abs(row.measured_std**2 - 1) < 0.1 for row in report.rows)
    True
    """
    require(isinstance(module, nn.Module), "module", type(module).__name__, "an nn.Module", error=TypeError)
    require(0 < tolerance < 1, "tolerance", tolerance, "between 0 and 1")
    require(max_attempts >= 1, "max_attempts", max_attempts, "one or more")
    require(not isinstance(skip, str), "skip", skip, f"a list: [{skip!r}]", error=TypeError)
    _require_variance(batch)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, WEIGHTED_LAYERS)}
    skipped = {id(layer) for name, layer in layers.items() if any(fnmatchcase(name, pattern) for pattern in skip)}
    require(bool(layers), "module", type(module).__name__, "a module with linear or convolutional layers")
    fit = _Fit(tolerance, max_attempts, generator, skipped)
    handles: list[Any] = []
    for name, layer in layers.items():
        handles.append(layer.register_forward_pre_hook(fit.before))
        handles.append(layer.register_forward_hook(fit.after(name), with_kwargs=True))
    done = False
    try:
        with left_as_it_was(module):
            training = module.training
            for part in module.modules():
                # A norm layer in eval mode inside a module in training mode is frozen on purpose.
                part.training = isinstance(part, NORM_LAYERS) and (part.training or not training)
            call(module, batch)
        done = True
    finally:
        for handle in handles:
            handle.remove()
        if not done:
            fit.undo()
    missed = [
        InitRow(
            name, type(layer).__name__, "", "lsuv", None, None, "not called as a layer on this batch: left as it was"
        )
        for name, layer in layers.items()
        if name not in fit.rows
    ]
    return InitReport((*fit.rows.values(), *missed))


def _require_variance(batch: Any) -> None:
    tensors = [tensor for tensor in tensors_in((batch,)) if tensor.numel() > 0]
    require(bool(tensors), "batch", type(batch).__name__, "a tensor, or a tuple or mapping with one")
    for tensor in tensors:
        require(bool(tensor.isfinite().all()), "batch", "NaN or infinite values", "finite")
    varies = any(
        bool((tensor != tensor[:1]).any()) if tensor.dim() and len(tensor) > 1 else bool((tensor != tensor.min()).any())
        for tensor in tensors
    )
    require(varies, "batch", "a constant", "of samples that differ: without variance there is nothing to scale")


class _Fit:
    """The hooks of one pass: an orthonormal weight before a layer's first call, the right scale after it."""

    def __init__(
        self, tolerance: float, max_attempts: int, generator: torch.Generator | None, skipped: set[int]
    ) -> None:
        self.tolerance, self.max_attempts, self.generator = tolerance, max_attempts, generator
        self.rows: dict[str, InitRow] = {}
        self._seen: set[object] = set()
        self._reasons: dict[int, str | None] = dict.fromkeys(skipped, "the call skips it")
        self._undo: list[tuple[Tensor, Tensor]] = []
        self._busy = False

    def before(self, layer: nn.Module, inputs: Any) -> None:
        if self._busy or id(layer) in self._reasons:
            return
        self._reasons[id(layer)] = self._start(layer)

    def _start(self, layer: nn.Module) -> str | None:
        """Make the weight orthonormal and the bias zero; or say why not."""
        keys = {key(tensor) for tensor in originals(layer, "weight")}
        if keys & self._seen:
            return "tied: scaled with the layer that was called first"
        reason = reason_to_leave(layer, "weight")
        if reason is not None:
            return reason
        self._seen |= keys
        with at_rest(layer):
            (slot,) = slots(layer)
            behind = originals(layer, "weight")
            before = [(tensor, tensor.detach().clone()) for tensor in behind]
            weight: Any = layer.weight
            reason = write(layer, "weight", draw_orthogonal(weight, slot, 1.0, self.generator))
        if reason is not None:
            return reason
        self._undo += before
        bias = getattr(layer, "bias", None)
        if isinstance(bias, nn.Parameter) and reason_to_leave(layer, "bias") is None:
            self._undo.append((bias, bias.detach().clone()))
            bias.zero_()
        return None

    def after(self, name: str) -> Callable[..., Any]:
        def hook(layer: nn.Module, inputs: Any, named: Any, output: Tensor) -> Tensor | None:
            if self._busy or name in self.rows:
                return None
            reason, calls = self._reasons[id(layer)], 0
            if reason is None:
                self._busy = True
                try:
                    output, calls, reason = self._scale(layer, inputs, named, output)
                finally:
                    self._busy = False
            variance = _variance(output)
            std = math.sqrt(variance) if math.isfinite(variance) else None
            self.rows[name] = InitRow(name, type(layer).__name__, "", "lsuv", 1.0, std, reason, calls)
            return output

        return hook

    def _scale(self, layer: nn.Module, inputs: Any, named: Any, output: Tensor) -> tuple[Tensor, int, str | None]:
        """Divide the weight by the spread of the output until that is 1; return it, the calls and what went wrong."""
        variance = _variance(output)
        for calls in range(self.max_attempts + 1):
            if abs(variance - 1.0) < self.tolerance:
                return output, calls, None
            if not math.isfinite(variance) or variance <= _SMALLEST:
                return output, calls, f"its output has the variance {variance:g}: is its input constant here?"
            if calls == self.max_attempts:
                break
            with at_rest(layer):
                weight: Any = layer.weight
                failed = write(layer, "weight", weight.detach() / math.sqrt(variance))
            if failed is not None:
                return output, calls, failed
            output = layer(*inputs, **named)
            variance = _variance(output)
        return output, calls, f"its output has the variance {variance:.3g} after {calls} calls"

    @torch.no_grad()
    def undo(self) -> None:
        for tensor, before in reversed(self._undo):
            tensor.copy_(before)


_SMALLEST = 1e-20


def _variance(output: Tensor) -> float:
    exact = output.detach()
    return float((exact if exact.dtype.itemsize >= 4 else exact.float()).var(correction=0))
