"""Readings of optimizers and schedules as they are set up."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from firstlight.checks import Evidence
from firstlight.preflight._bench import Bench
from firstlight.preflight._twin import held_by
from firstlight.schedules import Schedule

_MOST_STEPS = 5000
# Where torch and Lightning keep their own: parameters, hooks, the Trainer.
_THEIR_OWN = {*vars(nn.Module()), "_trainer", "_fabric", "_hparams", "_hparams_initial"}


def probe_optimizers(bench: Bench, evidence: Evidence) -> dict[str, Any]:
    """Read which tensors the optimizers hold and what their schedulers will do; return the schedule's picture."""
    twin = bench.twin
    optimizers: list[Optimizer] = bench.trainer.optimizers
    held = held_by(optimizers)
    known = {id(p): name for name, p in twin.named_parameters()}
    evidence.add(
        {
            "optimizer/names": [type(optimizer).__name__ for optimizer in optimizers],
            "optimizer/rates": [float(group["lr"]) for o in optimizers for group in o.param_groups],
            "optimizer/decay": max(
                (float(g.get("weight_decay") or 0) for o in optimizers for g in o.param_groups), default=0
            ),
            "optimizer/missing": [n for n, p in twin.named_parameters() if p.requires_grad and id(p) not in held],
            "optimizer/foreign": sum(id_ not in known for id_ in held),
            "model/unregistered": _unregistered(twin),
        }
    )
    return _simulate(bench, evidence)


def _unregistered(twin: Any) -> list[str]:
    """Tensors and modules that stand where no optimizer finds them, and that gradients have reached."""
    known = {id(p) for p in twin.parameters()}
    found: list[str] = []

    def lost(tensor: Tensor) -> bool:
        return id(tensor) not in known and tensor.requires_grad and tensor.grad is not None

    def look(value: Any, path: str, depth: int) -> None:
        if isinstance(value, nn.Module):
            if any(map(lost, value.parameters())):
                found.append(path)
        elif isinstance(value, Tensor):
            if value.is_leaf and lost(value):
                found.append(path)
        elif isinstance(value, (list, tuple)) and depth < 3:
            for index, item in enumerate(value):
                look(item, f"{path}[{index}]", depth + 1)
        elif isinstance(value, dict) and depth < 3:
            for key, item in value.items():
                look(item, f"{path}[{key!r}]", depth + 1)

    for name, layer in twin.named_modules():
        for attribute, value in vars(layer).items():
            if attribute not in _THEIR_OWN:
                look(value, f"{name}.{attribute}" if name else attribute, 0)
    return found


def _simulate(bench: Bench, evidence: Evidence) -> dict[str, Any]:
    """Step copies of the real schedulers at their real interval, without training."""
    configs = bench.trainer.lr_scheduler_configs
    planned = bench.plan.steps
    holder = next(
        (actor for actor in bench.plan.actors if isinstance(getattr(actor, "schedule", None), Schedule)), None
    )
    if not configs and holder is None:
        evidence.skip("schedule/", "neither configure_optimizers nor a callback gives a schedule")
        return {}
    if any(isinstance(config.scheduler, ReduceLROnPlateau) for config in configs):
        evidence.skip("schedule/", "the schedule follows a metric")
        return {}
    if planned > 10**8:
        evidence.skip("schedule/", "the run has no end")
        return {}
    steps = min(planned, _MOST_STEPS)
    per_epoch = max(1, -(-bench.plan.num_batches // bench.plan.accumulate))
    try:
        # together, so that each copy of a scheduler steps a copy of its optimizer
        copies = copy.deepcopy([(config.scheduler, config.interval, config.frequency) for config in configs])
        if not configs:
            copies = [(scheduler, "step", 1) for scheduler in _of_callback(holder, bench, per_epoch)]
            evidence.add({"schedule/holder": type(holder).__name__})
    except Exception as error:  # a scheduler that holds on to what cannot be copied, a schedule that fits no run
        evidence.skip("schedule/", f"the schedule cannot be played through: {error}")
        return {}
    groups: dict[str, list[float]] = {}
    for step in range(steps):
        number = 0
        for scheduler, _, _ in copies:
            for group in scheduler.optimizer.param_groups:
                groups.setdefault(f"group {number}", []).append(float(group["lr"]))
                number += 1
        for scheduler, interval, frequency in copies:
            ended = (step + 1) % per_epoch == 0 and (step + 1) // per_epoch % frequency == 0
            # Lightning counts the batches of an epoch, and asks where the optimizer has stepped
            batches = min((step % per_epoch + 1) * bench.plan.accumulate, bench.plan.num_batches)
            if ended if interval == "epoch" else batches % frequency == 0:
                scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]  # else torch warns
                scheduler.step()  # type: ignore[call-arg]
    first = next(iter(groups.values()))
    evidence.add(
        {
            "schedule/steps": steps,
            "schedule/planned": planned,
            "schedule/peak": max(first),
            "schedule/peak_step": first.index(max(first)),
            "schedule/early": max(first[: max(1, steps // 5)]),
            "schedule/rest": max(first[steps // 5 :]) if steps >= 5 else max(first),
            "schedule/base": float(copies[0][0].base_lrs[0]) if getattr(copies[0][0], "base_lrs", None) else max(first),
        }
    )
    stride = max(1, steps // 200)
    shown = list(range(0, steps, stride))
    return {"steps": shown, "rates": {name: [rates[i] for i in shown] for name, rates in groups.items()}}


def _of_callback(holder: Any, bench: Bench, steps_per_epoch: int) -> list[LambdaLR]:
    """Return a callback's schedule as torch's scheduler, for an optimizer with the groups' base rates each."""
    schedule = holder.schedule.resolve(steps_per_epoch=steps_per_epoch, steps_per_batch=1.0 / bench.plan.accumulate)
    total = holder.total_steps or bench.plan.steps
    rates = [
        [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups] for optimizer in bench.trainer.optimizers
    ]
    stand_ins = [SGD([{"params": [nn.Parameter()], "lr": rate} for rate in group]) for group in rates]
    return [LambdaLR(optimizer, lambda step: schedule.factor(step, total)) for optimizer in stand_ins]
