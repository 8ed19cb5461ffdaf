"""What a finding advises, done to a copy: so that the advice has been tried before it is given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight.checks import Finding
from firstlight.initializers import initialize_
from firstlight.preflight._subject import with_tensors

Readings = Mapping[str, Any]
Repair = Callable[[LightningModule, Readings], None]


def repaired(module: LightningModule, finding: Finding, readings: Readings) -> LightningModule | None:
    """Return a copy of ``module`` with what ``finding`` advises done to it; ``None`` where that needs a human.

    Args:
        module: the module that the finding is about; it stays as it is.
        finding: of :func:`run_preflight`, usually ``report.root``.
        readings: ``report.readings``.
    """
    if finding.code not in REPAIRS:
        return None
    twin = copy.deepcopy(module)
    REPAIRS[finding.code](twin, readings)
    return twin


def _on_batches(position: int, change: Callable[[Tensor], Tensor]) -> Repair:
    def repair(module: LightningModule, _: Readings) -> None:
        inner = module.on_after_batch_transfer

        def on_after_batch_transfer(batch: Any, dataloader_idx: int) -> Any:
            index = -1

            def at(tensor: Tensor) -> Tensor:
                nonlocal index
                index += 1
                return change(tensor) if index == position else tensor

            return with_tensors(inner(batch, dataloader_idx), at)

        module.on_after_batch_transfer = on_after_batch_transfer  # type: ignore[method-assign]

    return repair


def _standardize_inputs(module: LightningModule, readings: Readings) -> None:
    mean, std = torch.tensor(readings["inputs/mean"]), torch.tensor(readings["inputs/std"])
    if "inputs/columns" in readings:
        mean, std = torch.tensor(readings["inputs/columns"]).unbind(1)
    std = std.clamp(min=1e-12)
    _on_batches(readings["layout/inputs"][0], lambda t: (t - mean.to(t)) / std.to(t))(module, readings)


def _standardize_targets(module: LightningModule, readings: Readings) -> None:
    mean, std = readings["targets/mean"], readings["targets/std"]
    _on_batches(readings["layout/targets"][0], lambda t: (t - mean) / max(std, 1e-12))(module, readings)


def _fill(module: LightningModule, readings: Readings) -> None:
    _on_batches(readings["layout/inputs"][0], lambda t: t.nan_to_num(0.0, 0.0, 0.0))(module, readings)


def _initialize(module: LightningModule, _: Readings) -> None:
    initialize_(module)


def _on_outputs(change: Callable[[Tensor], Tensor]) -> Repair:
    """Change what the last module that the step calls gives."""

    def repair(module: LightningModule, readings: Readings) -> None:
        layer: nn.Module = module.get_submodule(readings["network/path"])
        layer.register_forward_hook(lambda *call: change(call[-1]) if isinstance(call[-1], Tensor) else None)

    return repair


def _undo_squashing(module: LightningModule, readings: Readings) -> None:
    """Give what went into the softmax or sigmoid, but for a constant."""
    if readings.get("network/simplex"):
        _on_outputs(lambda p: p.clamp(min=1e-30).log())(module, readings)
    else:
        _on_outputs(lambda p: torch.logit(p.double(), eps=1e-12).to(p.dtype))(module, readings)


def _widen_head(module: LightningModule, readings: Readings) -> None:
    low, high = readings["network/reach"]
    if low is None or high is None:
        raise ValueError("a head that is open on one side cannot be undone from outside")
    middle, half = (low + high) / 2, (high - low) / 2
    _on_outputs(lambda o: torch.logit(((o.double() - middle) / half + 1) / 2, eps=1e-9).to(o.dtype))(module, readings)


def _align_shapes(module: LightningModule, readings: Readings) -> None:
    _, target = readings["loss/broadcast"]
    _on_outputs(lambda o: o.reshape(-1, *target[1:]))(module, readings)


def _on_optimizers(change: Callable[[LightningModule, Optimizer], None]) -> Repair:
    def repair(module: LightningModule, _: Readings) -> None:
        inner = module.configure_optimizers

        def configure_optimizers() -> Any:
            configured: Any = inner()
            for optimizer in optimizers_in(configured):
                change(module, optimizer)
            return configured

        module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]

    return repair


def optimizers_in(configured: Any) -> list[Optimizer]:
    """Return the optimizers in whatever ``configure_optimizers`` gave."""
    if isinstance(configured, Optimizer):
        return [configured]
    if isinstance(configured, dict):
        return optimizers_in(configured["optimizer"])
    if isinstance(configured, (list, tuple)):
        first = configured[0] if configured and isinstance(configured[0], (list, tuple)) else configured
        return [optimizer for item in first for optimizer in optimizers_in(item)]
    return []


def _other_rate(module: LightningModule, readings: Readings) -> None:
    factor = readings["pair/better_factor"]

    def change(_: LightningModule, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
            if "initial_lr" in group:
                group["initial_lr"] = group["initial_lr"] * factor

    _on_optimizers(change)(module, readings)


def _turn_around(_: LightningModule, optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group["maximize"] = not group.get("maximize", False)


def _clear(_: LightningModule, optimizer: Optimizer) -> None:
    optimizer.register_step_post_hook(lambda done, *_: done.zero_grad())


def _hold_all(module: LightningModule, _: Readings) -> None:
    inner = module.configure_optimizers

    def configure_optimizers() -> Any:
        old = optimizers_in(inner())[0]
        settings = {key: value for key, value in old.param_groups[0].items() if key in old.defaults}
        return type(old)([p for p in module.parameters() if p.requires_grad], **settings)

    module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]


def _no_decay(_: LightningModule, optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        if group.get("weight_decay"):
            group["weight_decay"] = 0.0


REPAIRS: dict[str, Repair] = {
    "FL101": _fill,
    "FL102": _standardize_inputs,
    "FL103": _standardize_inputs,
    "FL104": _standardize_targets,
    "FL202": _initialize,
    "FL205": _initialize,
    "FL213": _initialize,
    "FL203": _initialize,
    "FL204": _initialize,
    "FL301": _initialize,
    "FL302": _undo_squashing,
    "FL303": _widen_head,
    "FL305": _align_shapes,
    "FL402": _initialize,
    "FL403": _on_optimizers(_clear),
    "FL501": _hold_all,
    "FL502": _on_optimizers(_turn_around),
    "FL503": _other_rate,
    "FL504": _other_rate,
    "FL506": _on_optimizers(_no_decay),
}


_NOT_ALONE = ": it did not help by itself"


def helped(finding: Finding) -> bool:
    """Whether the advice of ``finding`` was tried and let the batch be learned."""
    return finding.tried is not None and not finding.tried.endswith(_NOT_ALONE)


def told(finding: Finding, before: float, after: float, steps: int, *, helped: bool) -> Finding:
    """Return the finding with what its repair did."""
    said = f"loss {before:.4g} -> {after:.4g} in {steps} steps"
    return dataclasses.replace(finding, tried=said if helped else said + _NOT_ALONE)
