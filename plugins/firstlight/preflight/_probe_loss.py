"""Readings of the loss as a function of the outputs: best constant, what the head can reach, coupling, reduction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight._batch import size_of, tensors_of
from firstlight.checks import Evidence
from firstlight.measures import is_simplex
from firstlight.preflight._bench import Bench, Ran
from firstlight.preflight._layout import Layout
from firstlight.preflight._subject import part_of, with_tensors
from firstlight.preflight._tape import Record, task_of

_SPLITS = 8
_SPLIT_SIZE = 32
_ITERATIONS = 60

LossOf = Callable[[Tensor], Tensor]


def probe_loss(bench: Bench, batch: Any, ran: Ran, layout: Layout, evidence: Evidence) -> None:
    """Ask the loss about itself, with outputs of our own in place of the network's."""
    prediction, loss = ran.record.prediction, ran.loss
    if loss is None or prediction is None or not prediction.numel():
        several = f"the step differentiates {len(ran.losses)} losses" if len(ran.losses) > 1 else "no single loss"
        why = several if loss is None else "the last module that the step calls does not give one tensor"
        evidence.skip("loss/", f"{why}: the loss cannot be asked on its own")
        return
    outputs = prediction.detach().clone()

    def of(values: Tensor, part: Any = batch) -> Tensor:
        found = bench.loss_of(part, ran, values.to(outputs.dtype))
        assert found is not None
        return found

    evidence.add({"loss/initial": float(loss.detach()), "loss/task": task_of(ran.record)})
    _double_activation(ran, evidence)
    again = float(of(outputs).detach())
    if abs(again - float(loss.detach())) > 1e-3 * max(1.0, abs(again)):
        evidence.skip("loss/", "the loss depends on more than the outputs of the last network call")
        return
    reach = evidence.get("network/reach", [None, None])
    closed = _domain(evidence, reach)
    per_position = _per_position(ran, outputs)
    constant = _lowest(of, outputs, closed, constant_over=per_position)
    if _held_against_itself(bench, batch, ran, outputs):
        for key in ("loss/constant", "loss/level"):
            evidence.skip(key, "the loss holds outputs of one network against each other: a constant one is no guess")
    else:
        evidence.add({"loss/constant": constant, "loss/level": _level(of, outputs, closed)})
    target = layout.target_of(batch)
    if target is None or target.is_floating_point():  # of class indices the floor is zero
        start = outputs.float() if closed == "free" else torch.zeros_like(outputs, dtype=torch.float32)
        evidence.add({"loss/floor": _descend(lambda free: of(_to_domain(free, closed)), start)})
    _alignment(of, batch, outputs, layout, evidence)
    if layout.targets:
        _head(of, outputs, constant, reach, evidence)
        _coupling(bench, batch, ran, outputs, layout, evidence)
        _unbounded(of, outputs, layout.target_of(batch), evidence)
        _imbalance(of, outputs, layout.target_of(batch), evidence)
    else:
        for key in ("loss/reachable", "loss/coupling", "loss/unbounded", "loss/rare_weight"):
            evidence.skip(key, "no targets beside the inputs")
    _reduction(bench, batch, ran, outputs, evidence)


def _held_against_itself(bench: Bench, batch: Any, ran: Ran, outputs: Tensor) -> bool:
    """Whether the loss also follows other calls of the network, by another way than through the head."""
    loss = bench.loss_of(batch, ran, outputs)
    head, record = ran.record.head, bench.last.record
    if loss is None or head is None or not loss.requires_grad:
        return False
    others = [t for call in record.networks if call.path == head.path for t in tensors_of(call.output)]
    others = [tensor for tensor in others if tensor.requires_grad]
    slopes = torch.autograd.grad(loss, others, allow_unused=True) if others else ()
    return any(slope is not None for slope in slopes)


def _domain(evidence: Evidence, reach: list[float | None]) -> str:
    if evidence.get("network/simplex") and (evidence.get("network/shape") or [0])[-1] > 1:
        return "simplex"
    if evidence.get("network/log_simplex"):
        return "log_simplex"
    low, high = reach
    if low is not None and high is not None and low >= -1e-3 and high <= 1 + 1e-3 and high > low:
        return "unit"
    return "free"


def _to_domain(free: Tensor, closed: str) -> Tensor:
    if closed == "simplex":
        return free.softmax(1 if free.ndim > 1 else 0)
    if closed == "log_simplex":
        return free.log_softmax(1 if free.ndim > 1 else 0)
    return free.sigmoid().clamp(1e-6, 1 - 1e-6) if closed == "unit" else free


def _per_position(ran: Ran, outputs: Tensor) -> list[int]:
    """Dimensions over which a constant is the same: samples, and positions that have a class each."""
    call = ran.record.loss_calls[-1] if ran.record.loss_calls else None
    target = call.target if call is not None else None
    if outputs.ndim >= 3 and isinstance(target, Tensor) and not target.is_floating_point():
        classes = call.prediction.shape[1] if call is not None and isinstance(call.prediction, Tensor) else None
        kept = next((dim for dim in range(1, outputs.ndim) if outputs.shape[dim] == classes), outputs.ndim - 1)
        return [dim for dim in range(outputs.ndim) if dim != kept]
    return [0]


def _lowest(of: LossOf, outputs: Tensor, closed: str, *, constant_over: list[int]) -> float:
    """Return the lowest loss over constant outputs in the domain of the head; NaN if the loss cannot be followed."""
    shape = [1 if dim in constant_over else size for dim, size in enumerate(outputs.shape)] or [1]
    start = torch.zeros(shape, device=outputs.device)
    tries = [start]
    if closed == "free":
        tries.append(outputs.float().mean(constant_over, keepdim=True) if outputs.ndim else start)
    found = [_descend(lambda free: of(_to_domain(free, closed).expand_as(outputs)), guess) for guess in tries]
    finite = [value for value in found if math.isfinite(value)]
    if not finite and closed == "free":
        return _lowest(of, outputs, "unit", constant_over=constant_over)  # a loss of probabilities refuses others
    return min(finite) if finite else math.nan


def _level(of: LossOf, outputs: Tensor, closed: str) -> float:
    """Return the loss where every output is the middle of the head's range: zero, or even shares."""
    try:
        return float(of(_to_domain(torch.zeros_like(outputs, dtype=torch.float32), closed)).detach())
    except (RuntimeError, ValueError):
        return math.nan


def _descend(function: LossOf, start: Tensor) -> float:
    """Return the lowest value that LBFGS meets from ``start``."""
    free = start.detach().clone().requires_grad_(True)
    best = math.inf
    optimizer = torch.optim.LBFGS([free], max_iter=_ITERATIONS, max_eval=2 * _ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        nonlocal best
        optimizer.zero_grad()
        loss = function(free)
        if not loss.requires_grad:
            raise RuntimeError("the loss does not depend on the outputs")
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if math.isfinite(value):
            best = min(best, value)
        return loss

    try:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, IndexError):
        return best if math.isfinite(best) else math.nan
    return best if math.isfinite(best) else math.nan


def _double_activation(ran: Ran, evidence: Evidence) -> None:
    """What loss functions that take logits were given."""
    seen = ""
    for call in ran.record.loss_calls:
        given = call.prediction
        if not isinstance(given, Tensor) or given.ndim < 2 or (given.shape[1] < 2 and call.function is F.cross_entropy):
            continue
        if call.function is F.cross_entropy and is_simplex(given):
            seen = "softmax"
        elif call.function is F.binary_cross_entropy_with_logits and bool(((given >= 0) & (given <= 1)).all()):
            seen = seen or "perhaps sigmoid"
    logits = (F.cross_entropy, F.binary_cross_entropy_with_logits)
    direct = any(
        call.function in logits and ran.record.prediction is not None and call.prediction is ran.record.prediction
        for call in ran.record.loss_calls
    )
    evidence.add({"loss/given": seen, "loss/takes_logits": direct})


def _head(of: LossOf, outputs: Tensor, constant: float, reach: list[float | None], evidence: Evidence) -> None:
    """The lowest loss with free outputs, and with outputs that the head can give."""
    low, high = reach
    # Log-probabilities pull each other: a box around each does not hold them, and all that a loss asks for is there.
    if (low is None and high is None) or evidence.get("network/log_simplex"):
        evidence.add({"loss/reachable": 0.0})
        return
    if low is not None and high is not None and high - low <= 1e-6 * max(abs(low), abs(high), 1e-6):
        evidence.skip("loss/reachable", "the head gives one value only")
        return
    if not math.isfinite(constant):
        evidence.skip("loss/reachable", "the loss cannot be followed over outputs of our own")
        return
    free = _descend(of, outputs.float())

    def boxed(raw: Tensor) -> Tensor:
        if low is not None and high is not None:
            return of(low + (high - low) * raw.sigmoid())
        return of(low + F.softplus(raw) if low is not None else (high or 0.0) - F.softplus(raw))

    inside = _descend(boxed, torch.zeros_like(outputs, dtype=torch.float32))
    if not math.isfinite(inside):
        evidence.skip("loss/reachable", "the loss cannot be followed over outputs of our own")
        return
    if not math.isfinite(free) or free > inside:
        free = inside
    span = constant - free
    evidence.add({"loss/reachable": (inside - free) / span if span > 1e-9 else 0.0, "loss/reachable_value": inside})


def _coupling(bench: Bench, batch: Any, ran: Ran, outputs: Tensor, layout: Layout, evidence: Evidence) -> None:
    """How far the loss of a batch lies outside of those of its parts: a mean, weighted or not, lies between."""
    size = min(size_of(batch) or 0, _SPLIT_SIZE)
    if size < 4 or not outputs.ndim or len(outputs) < size:
        evidence.skip("loss/coupling", "fewer than four samples with an output each")
        return
    target = layout.target_of(batch)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(size, generator=generator) for _ in range(_SPLITS)]
    if target is not None and target.ndim:
        orders.append(target[:size].reshape(size, -1).float().mean(1).cpu().argsort())

    outside = [0.0]
    unmoved = []  # relative change of the loss when the outputs go to other samples
    # Untrained outputs hardly differ, and a loss that holds each against all targets then looks like a mean: outputs
    # that follow the targets tell.
    tried = [outputs]
    if target is not None and target.is_floating_point() and target.numel() == outputs.numel():
        tried.append(target.reshape(outputs.shape).to(outputs.dtype))
    elif target is not None and not target.is_floating_point() and target.ndim == 1 and outputs.ndim == 2:
        classes = torch.arange(outputs.shape[1], device=target.device)
        tried.append((target[:, None] == classes).to(outputs.dtype))
    for values in tried:

        def loss_on(index: Tensor, values: Tensor = values) -> float:
            value = bench.loss_of(part_of(batch, index), ran, values[index])
            return math.nan if value is None else float(value.detach().double())

        whole = loss_on(torch.arange(size))
        elsewhere = bench.loss_of(part_of(batch, torch.arange(size)), ran, values[orders[0]])
        if elsewhere is not None and abs(whole) > 1e-6:
            unmoved.append(abs(float(elsewhere.detach().double()) - whole) / abs(whole))
        for order in orders:
            first, second = loss_on(order[: size // 2]), loss_on(order[size // 2 :])
            beyond = max(min(first, second) - whole, whole - max(first, second))
            if math.isfinite(beyond) and abs(whole) > 1e-6:
                outside.append(beyond / abs(whole))
    # outputs that follow the targets, and are given to other samples, have the same loss: it pairs each with all
    evidence.add({"loss/coupling": max(outside), "loss/shares_of_batch": _shares_of_batch(ran)})
    evidence.add({"loss/pairs_all": len(unmoved) == 2 and max(unmoved) < 1e-5})
    given, asked = list(outputs.shape), list(target.shape) if target is not None else []
    alike = [size for size in given if size != 1] == [size for size in asked if size != 1]
    broadcast = target is not None and target.is_floating_point() and given != asked and alike
    evidence.add({"loss/broadcast": [given, asked] if broadcast else []})


def _shares_of_batch(ran: Ran) -> bool:
    """Whether what reaches a loss of classes is normalized over the samples, and not over the classes."""
    for call in ran.record.loss_calls:
        given = call.prediction
        if call.function not in (F.cross_entropy, F.nll_loss) or not isinstance(given, Tensor) or given.ndim != 2:
            continue
        shares = given.detach().float().exp() if call.function is F.nll_loss else given.detach().float()
        if min(given.shape) > 1 and is_simplex(shares.T) and not is_simplex(shares):
            return True
    return False


def _alignment(of: Any, batch: Any, outputs: Tensor, layout: Layout, evidence: Evidence) -> None:
    """Change one class index, and see which row of outputs is pulled another way: its own, or at a constant distance.

    A next-token model has its targets among its inputs, shifted; with the network replaced they act as targets only.
    """
    key = "loss/offsets"
    position = layout.targets[0] if len(layout.targets) == 1 else layout.inputs[0] if not layout.targets else None
    target = None if position is None else tensors_of(batch)[position]
    if position is None or target is None or target.is_floating_point() or not target.ndim:
        evidence.skip(key, "targets are not one class a position")
        return
    if outputs.ndim != target.ndim + 1 or len(outputs) != len(target) or target.numel() < 4:
        evidence.skip(key, "outputs do not fit the targets")
        return
    own = bool(layout.targets)
    shape, dims = list(outputs.shape), range(1, outputs.ndim)
    class_dims = [d for d in dims if shape[:d] + shape[d + 1 :] == list(target.shape)] if own else [outputs.ndim - 1]
    if len(class_dims) != 1 or shape[class_dims[0]] < 2:
        evidence.skip(key, "outputs do not fit the targets in one way only")
        return
    offsets = []
    for share in (0.3, 0.5, 0.7):
        spot = tuple(int(share * size) for size in target.shape)
        other = target.clone()
        other[spot] = (other[spot] + 1) % shape[class_dims[0]]
        moved = _moved(of, batch, _swapped(batch, position, other), outputs, class_dims[0])
        if moved is None or int(target[spot]) < 0:
            evidence.skip(key, "a target that was changed does not pull at the outputs of one sample")
            return
        offsets.append([to - at for to, at in zip(moved, spot, strict=True)])
    evidence.add({key: offsets, "loss/own_targets": own})


def _moved(of: Any, batch: Any, changed: Any, outputs: Tensor, dim: int) -> list[int] | None:
    """Return the row of level outputs whose pull differs most between two batches; ``None`` if no sample stands out.

    A class that changes the pull on many samples is coupled to them by the loss (a baseline over the batch, a
    broadcast), which says nothing about where it belongs.
    """
    level = torch.zeros_like(outputs, dtype=torch.float32).requires_grad_(True)
    losses = [of(level, part) for part in (batch, changed)]
    if not all(loss.requires_grad for loss in losses):
        return None
    pulls = [torch.autograd.grad(loss, level, allow_unused=True)[0] for loss in losses]
    if pulls[0] is None or pulls[1] is None or torch.equal(pulls[0], pulls[1]):
        return None
    distance = (pulls[0] - pulls[1]).movedim(dim, -1).abs().sum(-1)
    by_sample = distance.reshape(len(distance), -1).sum(1)
    if not float(by_sample.max()) > 0.5 * float(by_sample.sum()):  # also where they are not finite
        return None
    return [int(i) for i in torch.unravel_index(distance.argmax(), distance.shape)]


def _swapped(batch: Any, position: int, tensor: Tensor) -> Any:
    counter = itertools.count()
    return with_tensors(batch, lambda old: tensor if next(counter) == position else old)


def _reduction(bench: Bench, batch: Any, ran: Ran, outputs: Tensor, evidence: Evidence) -> None:
    size = size_of(batch)
    if size is None or not outputs.ndim or len(outputs) != size:
        evidence.skip("loss/doubling", "outputs are not one a sample")
        return
    twice = torch.arange(size).repeat(2)
    value = bench.loss_of(part_of(batch, twice), ran, outputs[twice])
    once = bench.loss_of(batch, ran, outputs)
    if value is not None and once is not None and abs(float(once)) > 1e-9:
        evidence.add({"loss/doubling": float(value.detach()) / float(once.detach())})


def _unbounded(of: LossOf, outputs: Tensor, target: Tensor | None, evidence: Evidence) -> None:
    """Whether outputs can push the loss of whole-number targets below zero without end."""
    if target is None or target.is_floating_point():
        evidence.skip("loss/unbounded", "targets are not whole numbers")
        return
    free = outputs.float().clone().requires_grad_(True)
    start = of(free)
    if not start.requires_grad:
        return
    (slope,) = torch.autograd.grad(start, free, allow_unused=True)
    if slope is None or not bool(slope.any()):
        evidence.add({"loss/unbounded": False})
        return
    way = -slope / slope.abs().max()
    near, far = (float(of(outputs.float() + reach * way).detach()) for reach in (100.0, 1000.0))
    falls = near < -1.0 and far < 5.0 * near
    evidence.add({"loss/unbounded": bool(falls and not evidence.get("network/log_simplex", False))})


def _imbalance(of: LossOf, outputs: Tensor, target: Tensor | None, evidence: Evidence) -> None:
    """How much more one sample of the rarest class pulls than one of the commonest, at equal outputs."""
    rarest = evidence.get("targets/rarest")
    usable = target is not None and target.ndim == 1 and not target.is_floating_point() and rarest is not None
    if not usable or target is None or outputs.ndim != 2:
        evidence.skip("loss/rare_weight", "targets are not one class a sample")
        return
    counts = evidence["targets/counts"]
    commonest = max(counts, key=lambda label: counts[label])
    level = torch.zeros_like(outputs, dtype=torch.float32).requires_grad_(True)
    try:
        (pull,) = torch.autograd.grad(of(level), level)
    except RuntimeError:
        evidence.skip("loss/rare_weight", "the loss refuses equal outputs")
        return
    size = pull.reshape(len(pull), -1).norm(dim=1)
    rare, common = size[target == rarest], size[target == commonest]
    if len(rare) and len(common) and float(common.mean()) > 0:
        evidence.add({"loss/rare_weight": float(rare.mean() / common.mean())})
    else:
        evidence.skip("loss/rare_weight", "the batch holds no sample of the rarest class")


def read_label_range(record: Record, evidence: Evidence) -> None:
    """Read lowest and highest class index and the number of outputs, also of a loss call that raised."""
    calls = [*record.loss_calls, *([record.refused] if record.refused is not None else [])]
    for call in calls:
        given, target = call.prediction, call.target
        if call.function not in (F.cross_entropy, F.nll_loss) or not isinstance(target, Tensor):
            continue
        if target.is_floating_point() or not isinstance(given, Tensor):
            continue
        counted = target[target != call.kwargs.get("ignore_index", -100)]
        if counted.numel():
            outputs = given.shape[1 if given.ndim > 1 else 0]
            evidence.add({"targets/label_range": [int(counted.min()), int(counted.max()), outputs]})
            return
    evidence.skip("targets/label_range", "no class indices reach a loss")
