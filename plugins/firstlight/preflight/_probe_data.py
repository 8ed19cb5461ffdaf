"""Readings of the data, from batches as the loader gives them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from firstlight._batch import size_of, tensors_of
from firstlight.checks import Evidence
from firstlight.measures import (
    batch_label_entropy,
    column_spreads,
    duplicate_share,
    label_signal,
    shared_rows,
    spread,
)
from firstlight.preflight._layout import Layout
from firstlight.preflight._subject import Subject

_MOST_COLUMNS = 4096
_ORDER_BATCHES = 10
_PERMUTATIONS = 199
_FEWEST = 16  # samples of a split whose mean can be told


def probe_batches(subject: Subject, layout: Layout, evidence: Evidence) -> None:
    """Read inputs and targets, the order in which they come, and what the two splits share."""
    evidence.add({"data/batches": len(subject.train), "data/samples": sum(size_of(b) or 0 for b in subject.train)})
    inputs = _joined([layout.input_of(batch) for batch in subject.train])
    targets = _joined([layout.target_of(batch) for batch in subject.train])
    val_inputs = _joined([layout.input_of(batch) for batch in subject.val])
    val_targets = _joined([layout.target_of(batch) for batch in subject.val])
    _nonfinite(subject, evidence)
    if val_inputs is None:
        evidence.skip("splits/", "there is no validation data, or its samples differ in shape")
    if inputs is None:
        for key in ("inputs/", "splits/", "labels/"):
            evidence.skip(key, "samples differ in shape, or the model takes no tensor of the batch")
    else:
        again = bool(getattr(getattr(subject.loader, "sampler", None), "replacement", False))
        if again:
            evidence.skip("inputs/duplicate_share", "the sampler draws with replacement")
        _inputs(inputs, evidence, again=again)
        if val_inputs is not None and val_inputs.shape[1:] == inputs.shape[1:]:
            _splits(inputs, val_inputs, evidence, masked=_is_masked(subject.train[0]))
        evidence.skip("splits/", "validation inputs have another shape")
    if targets is None:
        for key in ("targets/", "labels/", "data/order_ratio"):
            evidence.skip(key, "the batch holds no single target tensor beside the inputs")
        return
    _targets(targets, evidence)
    if inputs is not None and len(inputs) == len(targets):
        _signal(inputs, targets, val_inputs, val_targets, evidence)
    evidence.skip("labels/", "inputs and targets differ in number")
    if _are_classes(targets):
        _order([layout.target_of(batch) for batch in subject.train], evidence)
    for key in ("targets/classes", "targets/least_share", "data/order_ratio"):
        evidence.skip(key, "targets are not one class a sample")


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None and part.ndim]
    if not known or len(known) != len(parts) or any(part.shape[1:] != known[0].shape[1:] for part in known):
        return None
    return torch.cat(known)


def _are_classes(target: Tensor) -> bool:
    return target.ndim == 1 and not target.is_floating_point() and not target.is_complex()


def _nonfinite(subject: Subject, evidence: Evidence) -> None:
    bad, where = 0, ""
    for number, batch in enumerate(subject.train):
        for index, tensor in enumerate(tensors_of(batch)):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                cells = (~torch.isfinite(tensor)).nonzero()
                bad += len(cells)
                where = where or f"batch {number}, tensor {index}, first at {tuple(cells[0].tolist())}"
    evidence.add({"data/nonfinite": bad, "data/nonfinite_where": where})


def _inputs(inputs: Tensor, evidence: Evidence, *, again: bool) -> None:
    if not inputs.is_floating_point():
        evidence.skip("inputs/std", "inputs are whole numbers")
        evidence.skip("inputs/column_ratio", "inputs are whole numbers")
        evidence.skip("inputs/constant_share", "inputs are whole numbers")
    else:
        evidence.add({"inputs/raw_std": spread(inputs).std})
        columns = column_spreads(inputs)
        moving = columns[columns > 1e-12]
        evidence.add({"inputs/constant_share": 1.0 - len(moving) / len(columns)})
        if inputs.ndim == 2 and 1 < len(moving) <= _MOST_COLUMNS:
            widest = int(columns.argmax())
            evidence.add({"inputs/column_ratio": float(moving.max() / moving.median()), "inputs/widest": widest})
            if len(columns) <= 512:
                means = inputs.double().nan_to_num(0.0, 0.0, 0.0).mean(0).tolist()
                evidence.add(
                    {"inputs/columns": [[mean, std] for mean, std in zip(means, columns.tolist(), strict=True)]}
                )
        else:
            evidence.skip("inputs/column_ratio", "inputs are not rows of columns")
    evidence.add({"inputs/elements": inputs[0].numel()})
    if not again:
        evidence.add({"inputs/duplicate_share": duplicate_share(inputs)})


def _targets(targets: Tensor, evidence: Evidence) -> None:
    if targets.is_floating_point():
        read = spread(targets)
        evidence.add({"targets/std": read.std, "targets/mean": read.mean, "targets/low": read.low})
        evidence.add({"targets/high": read.high, "targets/kind": "numbers"})
        return
    evidence.skip("targets/std", "targets are whole numbers")
    if not _are_classes(targets):
        return
    classes, counts = torch.unique(targets[targets >= 0], return_counts=True)
    if len(classes):
        share = counts / counts.sum()
        evidence.add(
            {
                "targets/kind": "classes",
                "targets/classes": len(classes),
                "targets/least_share": float(share.min()) * len(classes),
                "targets/rarest": int(classes[share.argmin()]),
                "targets/counts": {int(c): int(n) for c, n in zip(classes[:100], counts[:100], strict=True)},
            }
        )


def _order(labels: list[Any], evidence: Evidence) -> None:
    batches = [batch for batch in labels if batch is not None][:_ORDER_BATCHES]
    together = torch.cat(batches) if batches else torch.zeros(0)
    everything = torch.cat([batch for batch in labels if batch is not None]) if batches else together
    if len(batches) < 4 or len(torch.unique(everything)) < 2:
        evidence.skip("data/order_ratio", "too few batches to tell their order")
        return
    sizes = [len(batch) for batch in batches]
    chance = []
    for _ in range(8):
        mixed = everything[torch.randperm(len(everything))][: len(together)]
        chance.append(batch_label_entropy(list(torch.split(mixed, sizes))))
    expected = sum(chance) / len(chance)
    ratio = batch_label_entropy(batches) / expected if expected > 0.05 else math.nan
    if math.isfinite(ratio):
        evidence.add({"data/order_ratio": ratio})
    else:
        evidence.skip("data/order_ratio", "a batch holds too few labels to tell their order")


def _is_masked(batch: Any) -> bool:
    """Whether a batch holds one truth value a sample."""
    size = size_of(batch)
    return any(t.dtype is torch.bool and t.ndim == 1 and len(t) == size for t in tensors_of(batch))


def _splits(inputs: Tensor, val: Tensor, evidence: Evidence, *, masked: bool) -> None:
    evidence.add({"splits/unique": 1.0 - duplicate_share(inputs)})
    if masked:  # one graph for both: what is learned and what is judged are other nodes of it
        evidence.skip("splits/shared", "a mask in the batch chooses among its samples")
    else:
        evidence.add({"splits/shared": shared_rows(inputs, val)})
    fewest = min(len(inputs), len(val))
    if not inputs.is_floating_point() or fewest < _FEWEST:
        evidence.skip("splits/shift", f"inputs are whole numbers, or a split has fewer than {_FEWEST} samples")
        return
    evidence.add({"splits/samples": fewest})
    ours, theirs = inputs.reshape(len(inputs), -1).double(), val.reshape(len(val), -1).double()
    wide = column_spreads(inputs)
    keep = wide > 1e-9
    if not bool(keep.any()):
        return
    shift = ((theirs.nanmean(0) - ours.nanmean(0)).abs()[keep] / wide[keep]).median()
    inner, outer = spread(inputs), spread(val)
    evidence.add({"splits/shift": float(shift), "splits/ratio": outer.std / max(inner.std, 1e-12)})


def _signal(
    inputs: Tensor, targets: Tensor, val: Tensor | None, val_targets: Tensor | None, evidence: Evidence
) -> None:
    usable = inputs.is_floating_point() and inputs[0].numel() <= _MOST_COLUMNS
    usable = usable and (_are_classes(targets) or (targets.is_floating_point() and targets[0].numel() <= 16))
    # a model of its own inputs has no labels; a tensor of labels as wide as the inputs is none either
    if not usable or len(inputs) < 100:
        evidence.skip("labels/", "needs at least 100 rows of numbers with one label each")
        return
    generator = torch.Generator().manual_seed(0)
    finite = torch.isfinite(inputs.reshape(len(inputs), -1)).all(1)
    if targets.is_floating_point():
        finite &= torch.isfinite(targets.reshape(len(targets), -1)).all(1)
    rows = torch.randperm(len(inputs), generator=generator)
    rows = rows[finite[rows]][:1000]
    if len(rows) < 100:
        evidence.skip("labels/", "fewer than 100 finite rows")
        return
    if _are_classes(targets) and int(torch.unique(targets[rows], return_counts=True)[1].min()) < 50:
        evidence.skip("labels/", "a class has fewer than 50 samples")
        return
    found = label_signal(inputs[rows], targets[rows], generator=generator, permutations=_PERMUTATIONS)
    evidence.add({"labels/gain": found.gain, "labels/p_value": found.p_value})
    if val is not None and val_targets is not None and len(val) == len(val_targets) >= 100:
        some = torch.randperm(len(val), generator=generator)[:1000]
        if _are_classes(targets) and int(torch.unique(val_targets[some], return_counts=True)[1].min()) < 10:
            return
        other = label_signal(val[some], val_targets[some], generator=generator, permutations=_PERMUTATIONS)
        evidence.add({"labels/val_gain": other.gain, "labels/val_p_value": other.p_value})
