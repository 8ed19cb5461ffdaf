"""Activations of a step that somebody else runs; and the first module to show a value that is not finite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from firstlight._rng import isolated_rng
from firstlight.measures import dead_units, saturated_share
from firstlight.preflight._bench import step_of
from firstlight.preflight._tape import SQUASHING, Tape
from firstlight.preflight._twin import alone, twin_of, writes_nothing


@dataclass
class Activations:
    """Shares by place, on the device: of units without slope, and of values where a squashing function has none."""

    dead: dict[str, Tensor] = field(default_factory=dict)
    saturated: dict[str, Tensor] = field(default_factory=dict)
    samples: int = 0


class ActivationWatch:
    """Between :meth:`begin` and :meth:`end` sees every activation function that ``module`` calls; changes nothing."""

    def __init__(self, module: nn.Module) -> None:
        self._tape = Tape(module, detail=True)
        # what is compiled must not meet a listener: it would be compiled again
        self._asleep = any(getattr(layer, "_compiled_call_impl", None) is not None for layer in module.modules())
        self._running: Any = None

    def begin(self) -> None:
        """Start to listen."""
        if not self._asleep:
            self._running = self._tape.running()
            self._running.__enter__()

    @torch.no_grad()
    def end(self) -> Activations:
        """Stop, and return what was seen."""
        found = Activations()
        if self._running is None:
            return found
        self._running.__exit__(None, None, None)
        self._running = None
        record = self._tape.record
        losses = {call.path for call in record.calls if call.is_loss}
        last = record.prediction
        for number, activation in enumerate(list(record.activations)):
            is_head = last is not None and activation.after.data_ptr() == last.data_ptr()
            if activation.path in losses or activation.after.ndim < 2 or is_head:
                continue
            name = activation.path or f"activation {number}"
            if activation.after.shape[1] > 1:
                # another watch may still listen, or, with two, this one: leaving takes the last mode, not one's own
                with torch._C.DisableTorchFunction():
                    slope = activation.slope()
                found.dead[name] = dead_units(slope)
                found.samples = max(found.samples, len(activation.after))
            if activation.function in SQUASHING:
                found.saturated[name] = saturated_share(activation.before, SQUASHING[activation.function])
        return found


def first_nonfinite(module: LightningModule, batch: Any, trainer: Trainer) -> str:
    """Run ``batch`` again on a copy, and name the first module whose parameter or output is not finite."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"{name} (the weights are not finite any more)"
    if not module.automatic_optimization:
        return ""
    try:
        with isolated_rng(), alone(), writes_nothing(), torch.no_grad():
            twin = twin_of(module)
            twin._trainer = trainer
            tape = Tape(twin, detail=True)
            with tape.running() as record, trainer.precision_plugin.train_step_context():
                step_of(twin, batch)
    except Exception:  # the run's own step has just done it; a copy may not be able to
        return ""
    for path, output in record.outputs:
        if output.is_floating_point() and not bool(torch.isfinite(output).all()):
            return path or type(module).__name__
    return ""
