"""run_preflight: evidence from copies, checks, a diagnosis."""

from __future__ import annotations

import dataclasses
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from firstlight import __version__
from firstlight._batch import size_of, tensors_of
from firstlight._require import require, said_by
from firstlight._rng import isolated_rng
from firstlight.checks import CHECKS, Check, Diagnosis, Evidence, Severity, diagnose
from firstlight.preflight._bench import Bench, Ran, on_bench
from firstlight.preflight._broken_step import LIGHTNING, broken_step
from firstlight.preflight._layout import Layout, layout_of
from firstlight.preflight._pictures import inputs_picture, layers_picture
from firstlight.preflight._probe_data import probe_batches
from firstlight.preflight._probe_environment import probe_environment
from firstlight.preflight._probe_held_out import probe_held_out
from firstlight.preflight._probe_loss import probe_loss, read_label_range
from firstlight.preflight._probe_network import probe_network
from firstlight.preflight._probe_optimizer import probe_optimizers
from firstlight.preflight._probe_pair import probe_pair, try_repair
from firstlight.preflight._probe_step import probe_steps
from firstlight.preflight._repairs import helped
from firstlight.preflight._report import CheckResult, PreflightReport, Status
from firstlight.preflight._subject import Subject, part_of, subject_of, with_tensors
from firstlight.preflight._twin import FOREIGN, alone, held_by

_PAIR_SAMPLES = 32
_FACTS = 20  # the highest rank of a check that is a fact about the set-up
_WINDOW = 256
_MOST_BENCH_BATCHES = 16


def run_preflight(
    module: LightningModule,
    datamodule: Any = None,
    *,
    trainer: Trainer | None = None,
    budget_seconds: float = 30,
    seed: int = 0,
    checks: Sequence[Check] = CHECKS,
) -> PreflightReport:
    """Say whether ``module`` can learn on this data, before it is trained; everything is tried on copies.

    Weights, buffers, optimizers, flags, loaders and random numbers are the same after as before.

    Args:
        module: what is to be trained.
        datamodule: a LightningDataModule, a training loader, a pair ``(train, val)`` of loaders, or ``None`` for a
            module with loaders of its own.
        trainer: the Trainer of the run to come: length, accumulation, clipping, precision, schedule callbacks.
        budget_seconds: what is not begun by then is skipped, and the report says so.
        seed: of everything that is drawn.
        checks: what to ask; default all.

    Raises:
        TypeError: ``module`` is no LightningModule, or there is no training data.
        ValueError: ``budget_seconds`` not above zero.
    """
    require(budget_seconds > 0, "budget_seconds", budget_seconds, "above zero")
    started = time.monotonic()
    evidence = Evidence()
    pictures: dict[str, Any] = {}
    crashes: dict[str, str] = {}
    with isolated_rng(seed), alone():
        subject = subject_of(module, datamodule, trainer)
        pair = _pair_batch(subject)
        _probe(subject, pair, evidence, pictures, crashes, deadline=started + budget_seconds)
        results = [_result(check, evidence, crashes) for check in checks]
        findings = [finding for result in results for finding in result.findings]
        ranks = {check.code: check.rank for check in checks}
        diagnosis = diagnose(findings, ranks)
        diagnosis = _confirmed(diagnosis, subject, pair, evidence, ranks, deadline=started + budget_seconds)
    spent = time.monotonic() - started
    environment = _environment(module) | {"seed": seed, "planned_steps": subject.plan.steps}
    over = evidence.get("budget/spent", False)
    return PreflightReport(
        tuple(results),
        diagnosis,
        dict(evidence),
        pictures,
        environment,
        spent,
        bool(over),
    )


def _confirmed(
    diagnosis: Diagnosis, subject: Subject, batch: Any, evidence: Evidence, ranks: Mapping[str, int], *, deadline: float
) -> Diagnosis:
    """Try what the root advises; where that does not help and what a symptom advises does, the symptom is the root."""
    if diagnosis.root is None:
        return diagnosis
    root = try_repair(subject, batch, diagnosis.root, evidence, deadline=deadline)
    # A fact about the set-up stays the root; what was concluded from how a copy trained may be a symptom.
    if root.tried is None or helped(root) or ranks.get(root.code, 0) <= _FACTS:
        return dataclasses.replace(diagnosis, root=root)
    for symptom in diagnosis.symptoms:
        other = try_repair(subject, batch, symptom, evidence, deadline=deadline)
        if helped(other):
            rest = (root, *(s for s in diagnosis.symptoms if s is not symptom))
            return dataclasses.replace(diagnosis, root=other, symptoms=rest)
    return dataclasses.replace(diagnosis, root=root)


def report_of(
    checks: Sequence[Check], evidence: Evidence, *, module: LightningModule, seconds: float, overhead: float
) -> PreflightReport:
    """Return what ``checks`` say of evidence that was gathered elsewhere, while training."""
    results = tuple(_result(check, evidence, {}) for check in checks)
    findings = [finding for result in results for finding in result.findings]
    diagnosis = diagnose(findings, {check.code: check.rank for check in checks})
    environment = _environment(module) | {"overhead": overhead}
    pictures = {"layers": layers_picture(evidence)}
    return PreflightReport(results, diagnosis, dict(evidence), pictures, environment, seconds)


def _environment(module: LightningModule) -> dict[str, Any]:
    return {
        "firstlight": __version__,
        "torch": torch.__version__,
        "lightning": metadata.version("lightning"),
        "python": platform.python_version(),
        "module": type(module).__qualname__,
        "device": str(module.device),
    }


def _probe(
    subject: Subject,
    pair: Any,
    evidence: Evidence,
    pictures: dict[str, Any],
    crashes: dict[str, str],
    *,
    deadline: float,
) -> None:
    for key, reason in subject.notes.items():
        evidence.skip(key, reason)
    plan = subject.plan
    evidence.add(
        {
            "plan/steps": plan.steps,
            "plan/accumulate": plan.accumulate,
            "plan/clip": plan.clip_value,
            "plan/precision": plan.precision,
            "plan/automatic": subject.module.automatic_optimization,
        }
    )

    def attempt(prefixes: tuple[str, ...], probe: Callable[[], Any]) -> Any:
        """Run a probe; the user's own exceptions are reasons, ours are crashes."""
        if time.monotonic() > deadline:
            evidence.add({"budget/spent": True})
            for prefix in prefixes:
                evidence.skip(prefix, "the budget of time is spent")
            return None
        try:
            return probe()
        except Exception as error:
            ours = _is_ours(error)
            for prefix in prefixes:
                evidence.skip(prefix, f"{'the probe failed' if ours else 'the step raised'} {said_by(error)}"[:300])
                if ours:
                    crashes[prefix] = traceback.format_exc()
            return None

    with isolated_rng(0):  # what the others draw is theirs
        probe_environment(subject, pair, evidence, attempt)
    layout = Layout((0,), (1,))

    def on(bench: Bench) -> None:
        nonlocal layout
        known = {id(p) for p in subject.module.parameters()}
        if known & held_by(bench.trainer.optimizers):
            for key in _OF_THE_BENCH:
                evidence.skip(key, FOREIGN)
            return
        ran = attempt(_OF_THE_BENCH, lambda: bench.run(bench.batch, detail=True))
        read_label_range(bench.last.record, evidence)
        if ran is None:
            attempt((), lambda: evidence.add(broken_step(bench)))
            return
        mixed = bench.batches[-1]  # the pair's, moved: of all batches the one whose labels surely differ
        again: Ran | None = attempt(("loss/",), lambda: bench.run(mixed))
        if again is not None:
            layout = attempt((), lambda: layout_of(bench, mixed, again)) or layout
            path = again.record.head.path if again.record.head is not None else ""
            evidence.add({"layout/inputs": layout.inputs, "layout/targets": layout.targets, "network/path": path})
        attempt(_OF_THE_STEP, lambda: probe_steps(bench, ran, evidence))
        if "loss/connected" in evidence:
            evidence.add({"model/step_error": ""})
        else:  # the way back may be what cannot be run
            attempt((), lambda: evidence.add(broken_step(bench)))
        schedule = attempt(("optimizer/", "schedule/"), lambda: probe_optimizers(bench, evidence))
        if schedule:
            pictures["schedule"] = schedule
        attempt(_OF_THE_NETWORK, lambda: probe_network(bench, ran, layout, evidence))
        attempt(_OF_THE_DATA, lambda: probe_batches(subject, layout, evidence))
        if again is not None:
            attempt(("loss/",), lambda: probe_loss(bench, mixed, again, layout, evidence))
        attempt((), lambda: pictures.update(inputs=inputs_picture(ran, layout, bench.batch)))

    attempt(_OF_THE_BENCH, lambda: on_bench(subject.module, plan, [*_window(subject), pair], on))
    if "data/batches" not in evidence:
        attempt(_OF_THE_DATA, lambda: probe_batches(subject, layout, evidence))
    curves = attempt(
        ("pair/", "update/", "gradient/stale", "gradient/later", "gradient/clip_norms"),
        lambda: probe_pair(subject, pair, evidence, deadline=deadline),
    )
    if curves:
        pictures["overfit"] = curves
    attempt(("labels/held_out_gain",), lambda: probe_held_out(subject, evidence, deadline=deadline))
    pictures["layers"] = layers_picture(evidence)


_OF_THE_NETWORK = ("network/", "targets/copy_inputs")
_OF_THE_STEP = ("model/", "gradient/", "activations/", "loss/")
_OF_THE_BENCH = (*_OF_THE_STEP, *_OF_THE_NETWORK, "optimizer/", "schedule/", "targets/label_range")
_OF_THE_DATA = ("data/", "inputs/", "targets/", "labels/", "splits/")


def _window(subject: Subject) -> list[Any]:
    """Return batches for single steps, at least a window of samples together."""
    chosen: list[Any] = []
    samples = 0
    for batch in subject.train:
        chosen.append(batch)
        samples += size_of(batch) or 1
        if samples >= _WINDOW or len(chosen) >= _MOST_BENCH_BATCHES:
            break
    return chosen


def _pair_batch(subject: Subject) -> Any:
    """Join small batches and cut large ones: enough samples to differ, few enough to be quick, classes in turn."""
    parts: list[Any] = []
    for batch in subject.train:
        parts.append(batch)
        # labels may come sorted: all batches are needed to meet every class
        if sum(size_of(part) or 0 for part in parts) >= _WINDOW and not _labels(batch):
            break
    joined = _concatenated(parts) if len(parts) > 1 else None
    batch = parts[0] if joined is None else joined
    size = size_of(batch)
    if size is None:
        return batch
    labels = _labels(batch)
    chosen = _in_turn(labels[-1]) if labels else torch.arange(size)
    return part_of(batch, chosen[:_PAIR_SAMPLES].sort().values)


def _labels(batch: Any) -> list[torch.Tensor]:
    return [t for t in tensors_of(batch)[1:] if t.ndim == 1 and len(t) == size_of(batch) and not t.is_floating_point()]


def _in_turn(labels: torch.Tensor) -> torch.Tensor:
    """Order samples so that each class comes once, then each a second time, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for label in labels.tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return torch.tensor(turns).argsort(stable=True)


def _concatenated(parts: list[Any]) -> Any:
    first = parts[0]
    sizes = [size_of(part) for part in parts]
    columns = list(zip(*(tensors_of(part) for part in parts), strict=False))
    joined = []
    for column in columns:
        same = all(
            t.ndim and len(t) == n and t.shape[1:] == column[0].shape[1:] for t, n in zip(column, sizes, strict=True)
        )
        if not same:
            return None
        joined.append(torch.cat(column))
    given = iter(joined)
    return with_tensors(first, lambda _: next(given))


def _is_ours(error: BaseException) -> bool:
    """Whether an exception comes from a probe, not from the module under it or a hook that Lightning called."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name in ("step_of", "back_of", "training_step") for frame in frames):
        return False
    return bool(frames) and not any(frame.filename.startswith(LIGHTNING) for frame in frames[-6:])


def _result(check: Check, evidence: Evidence, crashes: dict[str, str]) -> CheckResult:
    reason = check.missing(evidence)
    if reason is not None:
        lacking = [key for key in check.needs if key not in evidence]
        told = (text for prefix, text in crashes.items() if lacking and lacking[0].startswith(prefix))
        crash = next(told, None)
        status: Status = "skipped" if crash is None else "crashed"
        return CheckResult(check.code, check.name, check.title, status, reason=reason, traceback=crash)
    try:
        findings = tuple(check(evidence))
    except Exception:
        return CheckResult(check.code, check.name, check.title, "crashed", traceback=traceback.format_exc())
    worst = max((finding.severity for finding in findings), default=None)
    said: dict[Severity | None, Status] = {
        None: "passed",
        Severity.INFO: "info",
        Severity.WARNING: "warning",
        Severity.ERROR: "error",
    }
    return CheckResult(check.code, check.name, check.title, said[worst], findings)
