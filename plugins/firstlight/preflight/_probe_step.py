"""Readings of single training steps: what the model receives, activations, losses, gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from firstlight.checks import Evidence
from firstlight.measures import dead_units, identical_rows, relative_norms, saturated_share, spread
from firstlight.preflight._bench import Bench, Ran
from firstlight.preflight._tape import SQUASHING, Activation


def probe_steps(bench: Bench, ran: Ran, evidence: Evidence) -> None:
    """Run a step on each batch of the bench, with gradients; ``ran`` is a step on the first, in detail."""
    twin = bench.twin
    trainable = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    evidence.add(
        {
            "model/parameters": sum(p.numel() for p in twin.parameters()),
            "model/trainable": sum(p.numel() for p in trainable.values()),
            "model/in_eval": not any(layer.training for layer in twin.modules() if layer is not twin),
        }
    )
    zero = [name for name, p in trainable.items() if p.ndim >= 2 and not bool(p.any())]
    evidence.add({"model/identical_rows": _symmetric(trainable), "model/zero": zero})
    _first_nonfinite(ran, evidence)
    _received(ran, evidence)
    records: list[Ran] = []
    seen: dict[str, Tensor] = {}
    for batch in bench.batches:
        with _contributions(trainable) as parts:
            step = bench.run(batch, backward=True, detail=True)
        records.append(step)
        for name, part in parts.items():
            seen[name] = seen[name] + part if name in seen else part
        twin.zero_grad()
    if not any(loss.requires_grad for step in records for loss in step.losses):
        evidence.add({"loss/connected": False})
        for key in ("gradient/", "activations/"):
            evidence.skip(key, "the loss has no gradient")
        return
    evidence.add({"loss/connected": True})
    unreached = [name for name in trainable if name not in seen]
    zero = [name for name, gradient in seen.items() if not bool(gradient.count_nonzero())]
    ordered = {name: seen[name] for name in trainable if name in seen}
    finite = {name: gradient for name, gradient in ordered.items() if bool(torch.isfinite(gradient).all())}
    evidence.add(
        {
            "gradient/none": unreached,
            "gradient/zero": zero,
            "gradient/cut": _cut(ran, unreached) if unreached else "",
            "gradient/nonfinite": [name for name in seen if name not in finite],
            "gradient/norm": float(torch.stack([g.float().norm() for g in seen.values()]).norm()) if seen else 0.0,
            "gradient/share": _shares(finite),
            "gradient/relative": relative_norms(trainable, _dense_weights(trainable, finite)),
        }
    )
    _activations(records, evidence)


def _symmetric(trainable: dict[str, Any]) -> list[str]:
    """Weights whose units are all alike, and not all zero: those start somewhere only by their input."""
    return [
        name
        for name, weight in trainable.items()
        if weight.ndim >= 2 and len(weight) > 1 and bool(weight.any()) and identical_rows(weight)
    ]


@contextlib.contextmanager
def _contributions(parameters: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Sum what reaches each parameter, whatever a module with several losses clears in between."""
    parts: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(gradient: Tensor) -> None:
            dense = gradient.coalesce().to_dense() if gradient.is_sparse else gradient
            parts[name] = parts[name] + dense.detach().abs() if name in parts else dense.detach().abs()

        return hook

    handles = [parameter.register_hook(keep(name)) for name, parameter in parameters.items()]
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


def _dense_weights(trainable: dict[str, Any], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of matrices that every row takes part in; an embedding's rows do not."""
    chosen = {}
    for name, gradient in gradients.items():
        if trainable[name].ndim < 2:
            continue
        rows = gradient.reshape(len(gradient), -1).any(1).float().mean()
        if float(rows) > 0.5 or not bool(gradient.any()):
            chosen[name] = gradient
    return chosen


def _shares(gradients: dict[str, Tensor]) -> dict[str, float]:
    """Return the norm of each gradient as a share of the largest."""
    norms = {name: float(gradient.float().norm()) for name, gradient in gradients.items()}
    largest = max(norms.values(), default=0.0)
    return {name: norm / largest for name, norm in norms.items()} if largest > 0 else {}


def _cut(ran: Ran, unreached: list[str]) -> str:
    """Name the last module whose output carries no gradient though it holds parameters that should get some."""
    owners = {name.rpartition(".")[0] for name in unreached}
    cut = [path for path, output in ran.record.outputs if path in owners and not output.requires_grad]
    return cut[-1] if cut else next((name.rpartition(".")[0] for name in reversed(unreached)), "")


def _first_nonfinite(ran: Ran, evidence: Evidence) -> None:
    losses = [float(loss.detach()) for loss in ran.losses]
    evidence.add({"loss/values": losses})
    where = ""
    for path, output in ran.record.outputs:
        if output.is_floating_point() and not bool(torch.isfinite(output).all()):
            where = path
            break
    finite = all(torch.isfinite(torch.tensor(losses)).tolist())
    evidence.add({"loss/finite": finite, "model/first_nonfinite": where})


def _received(ran: Ran, evidence: Evidence) -> None:
    """What the first network call was given: the inputs after every transform."""
    call = next(iter(ran.record.networks), None)
    given = next((tensor for tensor in call.inputs if tensor.is_floating_point()), None) if call else None
    if given is None:
        evidence.skip("inputs/std", "the model receives no numbers: tokens or indices")
        return
    read = spread(given)
    evidence.add({"inputs/std": read.std, "inputs/mean": read.mean, "inputs/low": read.low, "inputs/high": read.high})


def _activations(runs: list[Ran], evidence: Evidence) -> None:
    """Share of dead units and of saturated values by place, over a window of samples."""
    places: dict[tuple[str, int, Any], list[Activation]] = {}
    samples = 0
    for run in runs:
        losses = {call.path for call in run.record.calls if call.is_loss}
        counts: dict[tuple[str, Any], int] = {}
        for activation in run.record.activations:
            key = (activation.path, activation.function)
            counts[key] = counts.get(key, -1) + 1
            if activation.path not in losses and activation.after.ndim >= 2:
                places.setdefault((activation.path, counts[key], activation.function), []).append(activation)
        first = run.record.networks[0].inputs if run.record.networks else ()
        samples += len(first[0]) if first and first[0].ndim else 0
    evidence.add({"activations/samples": samples})
    last = runs[-1].record.prediction if runs else None
    dead: dict[str, float] = {}
    saturated: dict[str, float] = {}
    for (path, number, function), found in places.items():
        shapes = {activation.after.shape[1:] for activation in found}
        is_head = (
            last is not None
            and found[-1].after.shape == last.shape
            and bool(torch.equal(found[-1].after, last.detach()))
        )
        if len(shapes) > 1 or is_head:
            continue
        name = f"{path}#{number}" if number else path
        # Constant alone is not dead: deep in a stack of sigmoids all samples look alike, and the slope is still there.
        slope = torch.cat([activation.slope() for activation in found])
        if slope.ndim >= 2 and slope.shape[1] > 1:
            dead[name] = max(dead.get(name, 0.0), float(dead_units(slope)))
        if function in SQUASHING:
            before = torch.cat([activation.before for activation in found])
            saturated[name] = float(saturated_share(before, SQUASHING[function]))
    evidence.add({"activations/dead": dead, "activations/saturated": saturated})
