"""What one batch of a watched run shows of its layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight._gradients import norms_of
from firstlight.callbacks._health_readings import Readings
from firstlight.preflight import ActivationWatch


class StepSample:
    """Activations, gradients, weights, and how far these moved: norms, read together with one wait for the device.

    It listens to the layers from the start on, until :meth:`stop_listening`.
    """

    def __init__(self, module: LightningModule) -> None:
        self.seconds = 0.0  # that it has taken, as its owner counts them
        self._watch: ActivationWatch | None = ActivationWatch(module)
        self._watch.begin()
        self._activations: Any = None
        self._steps: list[tuple[list[str], Tensor, Tensor]] = []  # an optimizer each: names, gradients, weights
        self._owners: list[nn.Parameter] = []
        self._before: dict[str, Tensor] = {}
        self._rate = 0.0

    @property
    def listens(self) -> bool:
        """Whether layers are still listened to."""
        return self._watch is not None

    def stop_listening(self) -> None:
        """Take the hooks away; nothing happens the second time."""
        if self._watch is not None:
            self._activations = self._watch.end()
            self._watch = None

    def see_step(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Measure what an optimizer is about to use, and keep the weights that it is about to change."""
        named = {n: p for n, p in module.named_parameters() if p.requires_grad and p.grad is not None}
        held = {id(p) for group in optimizer.param_groups for p in group["params"] if group["lr"] != 0}
        named = {name: p for name, p in named.items() if id(p) in held and not p.grad.is_sparse}  # type: ignore[union-attr]
        if named:
            self._owners = list(named.values())
            gradients = norms_of([p.grad for p in self._owners])  # type: ignore[misc]
            self._steps.append((list(named), gradients, norms_of([p.detach() for p in self._owners])))
            self._rate = max(float(group["lr"]) for group in optimizer.param_groups)
            self._before |= {name: p.detach().clone() for name, p in named.items()}

    def read(self, module: LightningModule, readings: Readings, *, clip: float | None, measure_after: bool) -> None:
        """Put into ``readings`` what there was, if an optimizer was about to step.

        ``clip`` is the norm that gradients were clipped to after they were seen; ``measure_after`` looks at them again.
        """
        self.stop_listening()  # if no backward pass came: manual optimization, or no loss
        if not self._before:
            return
        now = dict(module.named_parameters())
        changes = torch._foreach_sub([now[name].detach() for name in self._before], list(self._before.values()))
        numbers = [tensor for _, gradients, sizes in self._steps for tensor in (gradients, sizes)] + [norms_of(changes)]
        left = [p.grad for p in self._owners if p.grad is not None] if measure_after else []
        after = norms_of(left) if left else None  # none where the step was left out
        read = iter(torch.cat([n.double() for n in (numbers if after is None else [*numbers, after])]).tolist())
        sizes: dict[str, float] = {}
        total = 0.0
        for names, _, _ in self._steps:
            norms, lengths = ([next(read) for _ in names] for _ in range(2))
            total = math.sqrt(sum(norm**2 for norm in norms))
            if clip is not None and 0 < total < math.inf:
                readings.clipped.append(min(1.0, clip / total))
            sizes |= dict(zip(names, lengths, strict=True))
            _see_gradients(readings, dict(zip(names, norms, strict=True)), sizes, now)
        _see_changes(readings, {name: next(read) for name in self._before}, sizes, now, self._rate)
        if after is not None and 0 < total < math.inf:
            kept = math.sqrt(sum(norm**2 for norm in read)) / total
            if kept > 0:  # else it was cleared after the step; and rounding is no clipping
                readings.clipped.append(1.0 if kept > 1 - 1e-6 else kept)
        seen = self._activations
        if seen.samples:
            values = iter(torch.stack([*seen.dead.values(), *seen.saturated.values()]).tolist())
            readings.dead = {name: next(values) for name in seen.dead}
            readings.saturated = {name: next(values) for name in seen.saturated}
            readings.activation_samples = seen.samples


def _see_gradients(
    readings: Readings, norms: dict[str, float], sizes: dict[str, float], now: dict[str, nn.Parameter]
) -> None:
    # a bias before a norm layer has a gradient of rounding errors only, and need not move
    least = 1e-5 * max((norm for norm in norms.values() if math.isfinite(norm)), default=0.0)
    for name, norm in norms.items():
        if norm > least:
            readings.reached.add(name)
        # beside a head or a branch that starts at zero, and is still there, all other gradients look small
        if now[name].ndim >= 2 and _has_size(sizes[name], now[name]) and math.isfinite(norm):
            readings.relative[name] = norm / sizes[name]


def _see_changes(
    readings: Readings, changes: dict[str, float], sizes: dict[str, float], now: dict[str, nn.Parameter], rate: float
) -> None:
    readings.peak_rate = max(readings.peak_rate, rate)
    # in a warm-up or a trough updates are short by intent
    in_full = rate > 0.1 * readings.peak_rate
    for name, change in changes.items():
        if change != 0:
            readings.moved.add(name)
        elif in_full and name in readings.reached:
            readings.still[name] = readings.still.get(name, 0) + 1
    ratios = sorted(change / sizes[name] for name, change in changes.items() if _has_size(sizes[name], now[name]))
    if ratios and in_full:
        readings.ratios.append(ratios[len(ratios) // 2])


def _has_size(length: float, parameter: nn.Parameter) -> bool:
    """Whether a tensor has left zero: something may be measured against it."""
    return length > 1e-3 * math.sqrt(parameter.numel())
