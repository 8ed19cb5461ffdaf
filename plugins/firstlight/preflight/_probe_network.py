"""Readings of the network as a function: does it mix samples, is it random, is it linear, how far it reaches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from firstlight._batch import size_of
from firstlight._evaluating import evaluating
from firstlight._rng import isolated_rng
from firstlight.checks import Evidence
from firstlight.preflight._bench import Bench, Ran
from firstlight.preflight._layout import Layout
from firstlight.preflight._subject import part_of, with_tensors

_SCALES = (0.3, 3.0, 30.0)  # of random parameters, when the reach of the head is asked for


def probe_network(bench: Bench, ran: Ran, layout: Layout, evidence: Evidence) -> None:
    """Ask the network about itself in eval mode; needs a step whose last network call gives one tensor."""
    prediction = ran.record.prediction
    if prediction is None:
        evidence.skip("network/", "the last module that the step calls does not give one tensor")
        return
    evidence.add({"network/shape": list(prediction.shape)})
    batch = bench.batch
    self_supervised = not layout.targets
    _constant(bench, evidence)
    _mixing(bench, batch, prediction, evidence)
    if self_supervised:
        evidence.skip("network/eval_difference", "no targets: a model of its own inputs may sample")
    else:
        _random(bench, ran, evidence)
    _causal(bench, batch, layout, prediction, evidence)
    _batch_norm(bench, batch, evidence)
    _linear(bench, batch, layout, evidence)
    _reach(bench, evidence)
    _modes(bench, evidence)


def _predict(bench: Bench, batch: Any, *, training: bool = False, seed: int = 0) -> Tensor:
    with isolated_rng(seed):
        found = bench.run(batch, training=training).record.prediction
    assert found is not None
    return found.detach().float()


def _constant(bench: Bench, evidence: Evidence) -> None:
    outputs = [_predict(bench, batch) for batch in bench.batches]
    if any(output.ndim == 0 or output.shape[1:] != outputs[0].shape[1:] for output in outputs):
        evidence.skip("network/variation", "outputs differ in shape")
        return
    together = torch.cat(outputs)
    finite = bool(torch.isfinite(together).all())
    if len(together) < 2 or not finite:
        evidence.skip("network/variation", "outputs are not finite" if not finite else "one output only")
        return
    scale = float(together.abs().mean())
    evidence.add({"network/variation": float(together.std(0).max()) / max(scale, 1e-12), "network/scale": scale})


def _mixing(bench: Bench, batch: Any, prediction: Tensor, evidence: Evidence) -> None:
    size = size_of(batch)
    if size is None or size < 2 or not prediction.ndim or len(prediction) != size:
        evidence.skip("network/mixing", "outputs are not one a sample")
        return
    whole = _predict(bench, batch)
    given = {at: _received(bench, at) for at in (0, size - 1)}
    difference = 0.0
    # All other samples become copies of the first, whose own output has no reason to move; then of the last: where the
    # batch is read as time, a sample sees those before it alone.
    for at, received in given.items():
        alone = _predict(bench, part_of(batch, torch.full((size,), at)))
        if len(alone) != len(whole):
            evidence.skip("network/mixing", "outputs are not one a sample")
            return
        if received is not None and not torch.equal(received, _received(bench, at)):  # type: ignore[arg-type]
            evidence.skip("network/mixing", "the step itself mixes samples before the network gets them")
            return
        difference = max(difference, float((whole[at] - alone[at]).abs().max()))
    evidence.add({"network/mixing": difference / max(float(whole.abs().max()), 1e-12)})


def _received(bench: Bench, at: int) -> Tensor | None:
    """Return what the first network call of the last step was given as its sample ``at``."""
    given = next((call.inputs[0] for call in bench.last.record.networks if call.inputs), None)
    return None if given is None or len(given.shape) < 1 or len(given) <= at else given[at].detach().clone()


def _random(bench: Bench, ran: Ran, evidence: Evidence) -> None:
    """Call the last network again with what it was given: noise that the step itself adds is not the network's."""
    call = ran.record.head
    assert call is not None  # it gave the prediction
    layer = bench.twin.get_submodule(call.path)
    try:
        with evaluating(layer), torch.no_grad(), bench.trainer.precision_plugin.forward_context():
            first, second = (layer(*call.inputs) for _ in range(2))
    except Exception as error:  # the call took more than tensors
        evidence.skip("network/eval_difference", f"the network cannot be called again on its own: {error}")
        return
    if not isinstance(first, Tensor):
        evidence.skip("network/eval_difference", "the network gives more than one tensor")
        return
    scale = max(float(first.detach().float().abs().max()), 1e-12)
    evidence.add({"network/eval_difference": float((first.float() - second.float()).abs().max()) / scale})


def _causal(bench: Bench, batch: Any, layout: Layout, prediction: Tensor, evidence: Evidence) -> None:
    tokens = layout.input_of(batch)
    call = bench.run(batch, training=False).record
    given = call.head.inputs[0] if call.head is not None and call.head.inputs else None
    target = next((loss.target for loss in call.loss_calls if isinstance(loss.target, Tensor)), None)
    if target is not None and given is not None and target.numel() == given.numel() and not given.is_floating_point():
        evidence.add({"targets/copy_inputs": bool(torch.equal(target.reshape(given.shape), given))})
    else:
        evidence.skip("targets/copy_inputs", "targets are not tokens like the inputs")
    read = [tensor for network in call.networks for tensor in network.inputs]
    given = next((tensor for tensor in read if _is_shifted(tensor, tokens, target)), None)
    if given is None or tokens is None or prediction.ndim < 3:
        evidence.skip("network/look_ahead", "targets are not the inputs shifted by one")
        return
    moved = tokens.clone()
    length = given.shape[1]
    moved[:, length - 1] = torch.where(moved[:, length - 1] == moved[0, 0], moved[0, 1], moved[0, 0])
    position = layout.inputs[0]
    changed = _with(batch, position, moved)
    before, after = _predict(bench, batch), _predict(bench, changed)
    time_dim = next((d for d in range(1, before.ndim) if before.shape[d] == length), 1)
    earlier = slice(0, length - 1)
    difference = (before - after).abs().movedim(time_dim, 1)[:, earlier].max()
    evidence.add({"network/look_ahead": float(difference) / max(float(before.abs().max()), 1e-12)})


def _is_shifted(given: Tensor, tokens: Tensor | None, target: Tensor | None) -> bool:
    """Whether a network is given the tokens of the batch, and asked for the next ones."""
    if tokens is None or target is None or given.ndim != 2 or given.is_floating_point() or given.shape[1] < 3:
        return False
    if target.numel() != given.numel() or not torch.equal(tokens[:, : given.shape[1]], given):
        return False
    return bool(torch.equal(given[:, 1:], target.reshape(given.shape)[:, :-1]))


def _with(batch: Any, position: int, tensor: Tensor) -> Any:
    index = -1

    def change(old: Tensor) -> Tensor:
        nonlocal index
        index += 1
        return tensor if index == position else old

    return with_tensors(batch, change)


def _batch_norm(bench: Bench, batch: Any, evidence: Evidence) -> None:
    """Buffers that follow the data in training, and those that should and do not."""
    tracking = {
        name: layer
        for name, layer in bench.twin.named_modules()
        if isinstance(getattr(layer, "running_mean", None), Tensor) and layer.training
    }
    if not tracking:
        evidence.skip("network/stuck_statistics", "no layer keeps running statistics")
        return
    before = {name: layer.running_mean.clone() for name, layer in tracking.items()}
    after: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda layer, *_: after.__setitem__(name, layer.running_mean.clone())

    handles = [layer.register_forward_hook(keep(name)) for name, layer in tracking.items()]
    try:
        bench.run(batch)
    finally:
        for handle in handles:
            handle.remove()
    stuck = [name for name, value in after.items() if torch.equal(value, before[name])]
    evidence.add({"network/stuck_statistics": stuck})


def _linear(bench: Bench, batch: Any, layout: Layout, evidence: Evidence) -> None:
    given = layout.input_of(batch)
    matrices = [p for p in bench.twin.parameters() if p.ndim >= 2 and p.requires_grad]
    size = size_of(batch) or 0
    fits = given is not None and given.is_floating_point() and len(matrices) >= 2 and size >= 4
    if not fits or given is None or not bool(torch.isfinite(given).all()):
        evidence.skip("network/curvature", "one input of numbers and two matrices are needed")
        return
    position, half = layout.inputs[0], size // 2
    a, b = given[:half], given[half : 2 * half]
    bends = []
    for scale in (1.0, 10.0):
        parts = [scale * a, scale * b, scale * (0.3 * a + 0.7 * b)]
        outputs = []
        for part in parts:
            full = given.clone()
            full[:half] = part
            try:
                outputs.append(_predict(bench, _with(batch, position, full))[:half])
            except Exception as error:  # a loss of shares takes no inputs beyond 1
                evidence.skip("network/curvature", f"the step refuses other inputs: {error}")
                return
        if any(len(output) != half for output in outputs):
            evidence.skip("network/curvature", "outputs are not one a sample")
            return
        spread = float((outputs[0] - outputs[1]).abs().max())
        bend = float((outputs[2] - 0.3 * outputs[0] - 0.7 * outputs[1]).abs().max())
        if spread > 0 and math.isfinite(bend):
            bends.append(bend / spread)
    if bends:
        widths = [min(p.shape[0], math.prod(p.shape[1:])) for p in matrices]
        first, last = math.prod(given.shape[1:]), 1
        prediction = _predict(bench, batch)
        last = math.prod(prediction.shape[1:])
        evidence.add({"network/curvature": max(bends), "network/bottleneck": min(widths) < min(first, last)})
    else:
        evidence.skip("network/curvature", "outputs do not depend on the inputs")


def _reach(bench: Bench, evidence: Evidence) -> None:
    """How low and how high an output can be at all: with random parameters of growing size."""
    parameters = [p for p in bench.twin.parameters() if p.is_floating_point()]
    kept = [p.detach().clone() for p in parameters]
    lows: list[float] = []
    highs: list[float] = []
    simplex = log_simplex = True
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for scale in _SCALES:
                found = []
                for _ in range(3):
                    for parameter in parameters:
                        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                        fan = max(1, parameter[0].numel()) if parameter.ndim >= 2 else 1
                        parameter.copy_(noise * (scale / fan**0.5))
                    output = _predict(bench, bench.batch)
                    found.append(output[torch.isfinite(output)])
                    if output.ndim >= 2 and bool(torch.isfinite(output).all()):
                        simplex = simplex and _sums_to_one(output)
                        log_simplex = log_simplex and bool((output <= 1e-4).all()) and _sums_to_one(output.exp())
                    else:
                        simplex = log_simplex = False
                values = torch.cat(found)
                if not values.numel():
                    evidence.skip("network/reach", "random parameters give no finite output")
                    return
                lows.append(float(values.min()))
                highs.append(float(values.max()))
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, kept, strict=True):
                parameter.copy_(old)
    # With parameters ten times as large an open end goes much further out; a closed one stays.
    width = max(highs[1] - lows[1], 1e-12)
    low = min(lows) if lows[2] > lows[1] - 0.5 * width else None
    high = max(highs) if highs[2] < highs[1] + 0.5 * width else None
    evidence.add({"network/reach": [low, high], "network/simplex": simplex, "network/log_simplex": log_simplex})


def _sums_to_one(values: Tensor) -> bool:
    """Whether shares along the second or the last dimension sum to one, for all samples."""
    if bool((values < 0).any()):
        return False
    return any(bool(((values.sum(dim) - 1).abs() < 1e-3).all()) for dim in (1, -1))


def _modes(bench: Bench, evidence: Evidence) -> None:
    frozen_mode = [
        name
        for name, layer in bench.twin.named_modules()
        if not layer.training and name and any(p.requires_grad for p in layer.parameters(recurse=False))
    ]
    evidence.add({"model/in_eval_mode": frozen_mode})
