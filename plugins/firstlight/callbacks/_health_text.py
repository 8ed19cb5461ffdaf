"""A health summary in words: at most fifteen lines, and what stands out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# A step that changes the weights by more than this: 0.0004 to 0.014 in healthy runs, 0.053 in a new head.
LARGE_UPDATE = 0.1
FEW_READINGS = 5
MUCH_CLIPPED = 0.5  # beyond this the Deep Learning Tuning Playbook advises another learning rate
MUCH_WAITING = 0.3
SHOWN = 3  # optimizers, blocks and sentences; the JSON file has all


def to_text(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of the summary.

    Unit: none; at most fifteen lines of ASCII, whatever the names in the model.
    """
    run = report["run"]
    lines = [
        f"firstlight: {run['steps']} steps, {run['batches']} batches in {run['seconds']['fit']:.1f} s; {run['ended']}"
        f"{_speed(run)}"
    ]
    for optimizer in report["optimizers"][:SHOWN]:
        lines.append(f"  {_optimizer(optimizer)}")
    if len(report["optimizers"]) > SHOWN:
        lines.append(f"  and {len(report['optimizers']) - SHOWN} more optimizers")
    if report["loss"]:
        loss = report["loss"]
        lines.append(
            f"  loss: first {loss['first']:.4g}, last {loss['last']:.4g}, best {loss['best']:.4g} "
            f"(step {loss['best_step']})"
        )
    if report["update_ratio"]:
        lines.append(f"  change of the weights by a step, median: {_ratios(report['update_ratio'])}")
    lines += [f"  ! {sentence}" for sentence in report["stands_out"][:SHOWN]]
    return [line.encode("ascii", "backslashreplace").decode("ascii") for line in lines]


def _speed(run: Mapping[str, Any]) -> str:
    if run["steps_per_second"] is None:
        return ""
    bound = "" if run["device"] == "cpu" else "at most "
    return f"; {run['steps_per_second']:.3g} steps/s, {bound}{run['waiting_fraction']:.0%} of it waiting for data"


def _optimizer(optimizer: Mapping[str, Any]) -> str:
    norm, rate, clipped = optimizer["gradient_norm"], optimizer["learning_rate"], optimizer["clip_rate"]
    parts = [f"{optimizer['name']}: {optimizer['steps']} steps"]
    if rate:
        low, high = (f"{rate[end]:.3g}" for end in ("min", "max"))
        parts.append(f"learning rate {low}" + (f" to {high}" if high != low else ""))
    if norm:
        parts.append(f"gradient norm {norm['median']:.3g} (median), {norm['p90']:.3g} (p90), {norm['max']:.3g} (max)")
    if clipped is not None:
        parts.append(f"{clipped:.0%} clipped")
    parts.append(f"{optimizer['nonfinite_steps']} not finite")
    return ", ".join(parts)


def _ratios(ratios: Mapping[str, Mapping[str, float]]) -> str:
    ordered = sorted(ratios, key=lambda block: ratios[block]["median"], reverse=True)
    shown = ", ".join(f"{block} {ratios[block]['median']:.2g}" for block in ordered[:SHOWN])
    return shown + (
        f", down to {ratios[ordered[-1]]['median']:.2g} in {len(ordered)} blocks" if ordered[SHOWN:] else ""
    )


def what_stands_out(report: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that the numbers of ``report`` support, the gravest first."""
    return [*_nonfinite(report), *_rates(report), *_clipping(report), *_updates(report), *_waiting(report)]


def _nonfinite(report: Mapping[str, Any]) -> list[str]:
    first, run, loss = report["first_nonfinite"], report["run"], report["loss"]
    count = sum(optimizer["nonfinite_steps"] for optimizer in report["optimizers"])
    if first is None:
        ended = loss is not None and not math.isfinite(loss["last"])
        return [f"The last loss is {loss['last']}, though every gradient was finite."] if ended else []
    if run["loss_scaling"] and count <= max(10, run["steps"] // 100):
        return []  # how the scaler of 16-mixed precision finds its scale
    where = f"step {first['step']} (epoch {first['epoch']}, batch {first['batch']})"
    what = f"The gradient was not finite at {count} of {run['steps']} steps, first at {where}: "
    if first["loss"] is not None and not math.isfinite(first["loss"]):
        return [f"{what}the loss of that step was {first['loss']}."]
    loss_then = "" if first["loss"] is None else f", with a loss of {first['loss']:.4g}"
    return [
        f"{what}{first['nonfinite_gradients']} of {first['gradients']} parameters, nearest to the loss "
        f"{first['parameter']}{loss_then}."
    ]


def _rates(report: Mapping[str, Any]) -> list[str]:
    still = [o["name"] for o in report["optimizers"] if o["learning_rate"] and o["learning_rate"]["max"] == 0]
    return [f"The learning rate of {name} was 0 at every step." for name in still]


def _clipping(report: Mapping[str, Any]) -> list[str]:
    limit = report["run"]["gradient_clip_val"]
    return [
        f"Clipping{f' at {limit:g}' if limit else ''} shortened {o['clip_rate']:.0%} of the gradients of {o['name']}; "
        f"their median norm is {o['gradient_norm']['median']:.3g}, the 90th percentile {o['gradient_norm']['p90']:.3g}."
        for o in report["optimizers"]
        if o["gradient_norm"] and (o["clip_rate"] or 0.0) > MUCH_CLIPPED
    ]


def _updates(report: Mapping[str, Any]) -> list[str]:
    ratios = {b: r["median"] for b, r in report["update_ratio"].items() if r["readings"] >= FEW_READINGS}
    large = [block for block in sorted(ratios, key=ratios.__getitem__, reverse=True) if ratios[block] > LARGE_UPDATE]
    if not large:
        return []
    others = f" (and {len(large) - 1} more blocks)" if large[1:] else ""
    healthy = "in healthy runs it is 0.04 % to 1.4 %"
    return [f"A step changes the weights of {large[0]}{others} by {ratios[large[0]]:.0%} (median); {healthy}."]


def _waiting(report: Mapping[str, Any]) -> list[str]:
    run = report["run"]
    waiting = run["waiting_fraction"] or 0.0
    if run["device"] != "cpu" or waiting <= MUCH_WAITING:  # a device works on while the host waits
        return []
    return [f"{waiting:.0%} of the time passed between two batches: more workers of the DataLoader may help."]
