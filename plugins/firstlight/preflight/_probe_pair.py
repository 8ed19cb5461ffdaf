"""The pair: one batch, trained by the user's own optimizer and by a reference Adam, both on copies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Adam, Optimizer

from firstlight._require import said_by
from firstlight.checks import Evidence, Finding
from firstlight.measures import best_of_last, update_ratios
from firstlight.preflight._bench import Bench
from firstlight.preflight._repairs import REPAIRS, optimizers_in, told
from firstlight.preflight._subject import Subject
from firstlight.preflight._tape import task_of
from firstlight.preflight._twin import FOREIGN, ForeignError, Plan, Stop, fit, held_by, twin_of, without_dropout

_OWN_STEPS = 1000
_REFERENCES = ((3e-3, 300), (2e-2, 300))
_LEARNT = 0.5  # of the loss of the best constant: far enough to call it learning
_RATIO_STEPS = 20
_IDLE_STEPS, _DRIFT = 50, 1.25  # of steps at a rate of zero, and how far the loss has to rise in them to be looked at
_FACTORS = (0.1, 0.01, 10.0, 100.0, 1000.0, 10_000.0)  # of the user's learning rate, tried where that fails
_LATER = 10  # the step after which gradients are read again: zero-initialized branches have opened by then


@dataclass
class Run:
    """What one training of a copy on one batch showed."""

    name: str
    losses: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # median over tensors, one a step
    blocks: dict[str, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    error: str | None = None
    stale: list[str] = field(default_factory=list)  # parameters whose old gradient was still there
    still: list[str] = field(default_factory=list)  # parameters that did not move
    reached: set[str] = field(default_factory=set)
    later: dict[str, float] = field(default_factory=dict)  # gradient over weight after some steps
    clip: list[float] = field(default_factory=list)  # norms before clipping
    ascent: list[float] = field(default_factory=list)
    foreign: bool = False
    task_end: float | None = None  # the losses that torch's functions gave at the end, without what was added to them


class Watcher(Callback):
    """Takes readings of a fit of a copy; everything that it does is done to the copy."""

    def __init__(
        self,
        run: Run,
        original: set[int],
        deadline: float,
        enough: Callable[[], bool],
        *,
        ascent: bool,
        factor: float = 1.0,
    ) -> None:
        self.run, self.original, self.deadline, self.enough = run, original, deadline, enough
        self.ascent, self.factor = ascent, factor  # of the learning rates
        self.handles: list[Any] = []
        self.steps = 0
        self.fresh: set[int] = set()  # parameters whose gradient was cleared since their last step
        self.stepped: set[int] = set()
        self.probing = False
        self.batch: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if held_by(trainer.optimizers) & self.original:
            self.run.foreign = True
            raise ForeignError(FOREIGN)
        if self.factor != 1.0:
            _scale_rates(trainer, self.factor)
        self.run.name = self.run.name or _describe(trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.names = {id(p): name for name, p in pl_module.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                self.handles.append(parameter.register_hook(self._arrives(name, parameter)))  # type: ignore[no-untyped-call]
        for optimizer in trainer.optimizers:
            self.handles.append(optimizer.register_step_post_hook(self._stepped))

    def _arrives(self, name: str, parameter: Tensor) -> Callable[[Tensor], None]:
        def arrives(gradient: Tensor) -> None:
            if self.probing:
                return
            if self.steps <= _LATER or name not in self.run.reached:
                values = gradient.coalesce().values() if gradient.is_sparse else gradient
                if bool(values.count_nonzero()):
                    self.run.reached.add(name)
            old = parameter.grad
            if old is None or not bool((old.coalesce().values() if old.is_sparse else old).count_nonzero()):
                self.fresh.add(id(parameter))

        return arrives

    def _stepped(self, optimizer: Optimizer, *args: Any) -> None:
        """Gradients that were there before the last step and were never cleared have just been applied again."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self.names.get(id(parameter), "")
                old = id(parameter) in self.stepped and id(parameter) not in self.fresh and parameter.grad is not None
                if old and name not in self.run.stale and bool(parameter.grad.to_dense().count_nonzero()):
                    self.run.stale.append(name)
                self.stepped.add(id(parameter))
                self.fresh.discard(id(parameter))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch, self.counted = batch, trainer.global_step
        self.before = None
        if len(self.run.ratios) < _RATIO_STEPS + 3:
            self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
        rates = [float(group["lr"]) for o in trainer.optimizers for group in o.param_groups]
        self.run.rates.append(max(rates, default=0.0))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.steps > 50:
            return
        grads = [p.grad.to_dense() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if grads:
            self.run.clip.append(float(torch.stack([g.float().norm() for g in grads]).norm()))
        if self.steps == _LATER:
            for name, p in pl_module.named_parameters():
                if p.grad is not None and p.ndim >= 2 and p.requires_grad:
                    size = float(p.detach().float().norm())
                    self.run.later[name] = float(p.grad.to_dense().float().norm()) / max(size, 1e-12)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.run.losses.append(float(loss.detach()) * trainer.accumulate_grad_batches)
        if trainer.global_step > self.counted:
            self.steps += 1
            if self.before is not None:
                after = {name: p.detach() for name, p in pl_module.named_parameters() if p.requires_grad}
                ratios = update_ratios(self.before, after)
                if ratios:
                    self.run.ratios.append(sorted(ratios.values())[len(ratios) // 2])
                    for name, ratio in ratios.items():
                        self.run.blocks.setdefault(name, []).append(ratio)
                if self.ascent and len(self.run.ascent) < 3:
                    self._ascends(trainer, pl_module, batch)
        if self.enough() or time.monotonic() > self.deadline:
            trainer.should_stop = True

    def _ascends(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Read the cosine between the last update and the gradient of the task in eval mode: downhill it is below 0."""
        assert self.before is not None
        named = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        after = {name: p.detach().clone() for name, p in named.items()}
        kept = {name: p.grad for name, p in named.items()}
        self.probing = True
        try:
            with torch.no_grad():
                for name, p in named.items():
                    p.copy_(self.before[name])
                    p.grad = None
            ran = Bench(trainer, pl_module, [batch], Plan()).run(batch, training=False)
            values = [call.value.mean() for call in ran.record.loss_calls if call.value.requires_grad] or ran.losses
            if not values:
                return
            task = torch.stack([value.float() for value in values]).sum()
            slopes = torch.autograd.grad(task, list(named.values()), allow_unused=True)
            dot = up = along = 0.0
            for (name, _), slope in zip(named.items(), slopes, strict=True):
                if slope is not None:
                    move = (after[name] - self.before[name]).double()
                    steep = slope.to_dense().double()
                    dot += float((move * steep).sum())
                    up += float(steep.square().sum())
                    along += float(move.square().sum())
            if up > 0 and along > 0 and math.isfinite(dot):
                self.run.ascent.append(dot / math.sqrt(up * along))
        except RuntimeError:  # no gradient in eval mode, or none of this loss
            return
        finally:
            self.probing = False
            with torch.no_grad():
                for name, p in named.items():
                    p.copy_(after[name])
                    p.grad = kept[name]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._let_go()
        if self.ascent and pl_module.automatic_optimization and self.batch is not None:
            ran = Bench(trainer, pl_module, [self.batch], Plan()).run(self.batch)
            self.run.task_end = task_of(ran.record)
        still = {
            name for name, p in pl_module.named_parameters() if name in self.start and torch.equal(p, self.start[name])
        }
        self.run.still = sorted(still)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._let_go()

    def _let_go(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


def _scale_rates(trainer: Trainer, factor: float) -> None:
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for key in ("lr", "initial_lr", "max_lr", "min_lr"):
                if key in group:
                    group[key] = group[key] * factor
    for config in trainer.lr_scheduler_configs:
        if hasattr(config.scheduler, "base_lrs"):
            config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]


def probe_pair(subject: Subject, batch: Any, evidence: Evidence, *, deadline: float) -> dict[str, Any]:
    """Train copies on ``batch``: with the user's optimizer, and where that does not learn with a reference Adam."""
    constant = evidence.get("loss/constant")
    initial = evidence.get("loss/initial", next(iter(evidence.get("loss/values", [])), math.nan))
    if constant is None or not math.isfinite(constant) or abs(constant) < 1e-2 * abs(initial):
        constant = initial if math.isfinite(initial) else math.nan
    own = _own(subject, batch, constant, deadline)
    _read_own(own, constant, evidence)
    if time.monotonic() > deadline:
        evidence.add({"budget/spent": True})
    if "pair/own" in evidence:
        for key in ("pair/undecayed", "pair/initialized", "pair/without_dropout"):
            evidence.skip(key, "there was nothing to explain, or another cause was found first")
    pictures: dict[str, Any] = {"own": own.losses, "own_name": own.name, "constant": constant}
    if not own.losses and own.error is None:  # nothing to hold a reference against
        return pictures
    if _share(own.losses, constant) < _LEARNT and not own.stale:
        evidence.skip("pair/reference", "the user's own optimizer learns the batch")
        return pictures
    best: Run | None = None
    for rate, steps in _REFERENCES:
        reference = _reference(subject, batch, constant, rate, steps, deadline)
        if reference.error is not None:
            evidence.skip("pair/reference", f"the reference cannot run: {reference.error}")
            break
        if best is None or _share(reference.losses, constant) < _share(best.losses, constant):
            best = reference
        if _share(best.losses, constant) < _LEARNT:
            break
    if best is not None and min(_share(own.losses, constant), _share(best.losses, constant)) > 0.9:
        idle = _reference(subject, batch, constant, 0.0, _IDLE_STEPS, deadline)
        grown = best_of_last(idle.losses) / idle.losses[0] if idle.losses and idle.losses[0] > 0 else math.nan
        if grown > _DRIFT:  # a queue that fills with this one batch: what was learned shows beside what was not
            constant *= grown
            _read_own(own, constant, evidence)
    if best is not None and best.losses:
        evidence.add({"pair/reference": _share(best.losses, constant), "pair/reference_steps": len(best.losses)})
        evidence.add({"pair/reference_loss": best_of_last(best.losses), "pair/reference_name": best.name})
        evidence.add({"pair/reference_reached": sorted(best.reached)})
        pictures |= {"reference": best.losses, "reference_name": best.name}
        _explain(subject, batch, constant, own, best, evidence, deadline)
    return pictures


def _explain(
    subject: Subject, batch: Any, constant: float, own: Run, best: Run, evidence: Evidence, deadline: float
) -> None:
    """Change one thing at a time until the batch is learned: decay, initial weights, dropout, the rate."""
    share, reference = _share(own.losses, constant), _share(best.losses, constant)
    steps = _REFERENCES[0][1]
    if share <= 0.7 or own.stale or not own.rates:
        return
    if share > 0.9 and evidence.get("optimizer/decay", 0.0) > 0:
        run = _own(subject, batch, constant, deadline, steps=steps, change=REPAIRS["FL506"])
        evidence.add({"pair/undecayed": _share(run.losses, constant)})
        if evidence["pair/undecayed"] < _LEARNT:
            return
    if share > 0.9:
        run = _own(subject, batch, constant, deadline, steps=steps, change=REPAIRS["FL301"])
        evidence.add({"pair/initialized": _share(run.losses, constant)})
    if reference > 0.9 or (share > 0.9 and reference > _LEARNT):
        run = _reference(subject, batch, constant, *_REFERENCES[0], deadline, change=without_dropout)
        evidence.add({"pair/without_dropout": _share(run.losses, constant)})
    if reference < _LEARNT and evidence.get("pair/initialized", 1.0) >= _LEARNT:
        _other_rates(subject, batch, constant, own, evidence, deadline)


def _other_rates(subject: Subject, batch: Any, constant: float, own: Run, evidence: Evidence, deadline: float) -> None:
    """Try the user's own optimizer at other rates: the nearest that learns says which way and how far off it was."""
    short = _median(own.ratios[3:]) < 1e-3 if len(own.ratios) > 3 else False
    factors = sorted(_FACTORS, key=lambda factor: ((factor > 1) != short, abs(math.log(factor))))
    tried: dict[str, float] = {}
    for factor in factors:
        if time.monotonic() > deadline:
            return
        run = _own(subject, batch, constant, deadline, factor=factor, steps=_REFERENCES[0][1])
        tried[f"{factor:g}"] = _share(run.losses, constant)
        evidence.add({"pair/rates": tried})
        if tried[f"{factor:g}"] < _LEARNT:
            told = f"{run.losses[0]:.3g} to {best_of_last(run.losses):.3g} in {len(run.losses)} steps"
            evidence.add({"pair/better_factor": factor, "pair/better_told": told})
            return


def _share(losses: list[float], constant: float) -> float:
    """Return the loss at the end as a share of the best constant's; infinite if it is not a number."""
    last = losses[-1] if losses else math.nan
    end = best_of_last(losses)
    if not math.isfinite(last) or not math.isfinite(end) or not math.isfinite(constant):
        return math.inf
    if constant <= 0:  # a loss without a bottom: how far it fell is all that can be said
        return 0.0 if losses[0] - end > 0.1 * abs(losses[0]) else 1.0
    return end / constant


def try_repair(subject: Subject, batch: Any, finding: Finding, evidence: Evidence, *, deadline: float) -> Finding:
    """Do what ``finding`` advises to a copy, train it on ``batch``, and return the finding with what came of it."""
    repair = REPAIRS.get(finding.code)
    before, constant = evidence.get("pair/first_loss"), evidence.get("pair/constant")
    if repair is None or constant is None or before is None or time.monotonic() > deadline:
        return finding
    try:
        run = _own(
            subject,
            batch,
            math.nan,
            deadline,
            steps=_REFERENCES[0][1],
            learnt=0.1,
            change=repair,
            readings=dict(evidence),
        )
    except Exception:  # a repair that does not fit this module needs a human
        return finding
    if run.error is not None or len(run.losses) < 2:
        return finding
    ended = best_of_last(run.losses)
    helped = ended < 0.5 * run.losses[0]
    return told(finding, run.losses[0], ended, len(run.losses), helped=helped)


def _own(
    subject: Subject,
    batch: Any,
    constant: float,
    deadline: float,
    *,
    factor: float = 1.0,
    steps: int = _OWN_STEPS,
    learnt: float = _LEARNT,
    change: Callable[[LightningModule, Any], None] | None = None,
    readings: Any = None,
) -> Run:
    run = Run("")
    limit = min(steps, subject.plan.steps) * subject.plan.accumulate
    original = {id(p) for p in subject.module.parameters()}

    def enough() -> bool:
        if run.losses and not math.isfinite(run.losses[-1]):
            return len(run.losses) > 3
        # a repair may change the unit of the loss: then its own first value is the measure
        against = constant if math.isfinite(constant) else run.losses[0] if run.losses else math.nan
        return len(run.ratios) >= _RATIO_STEPS and _share(run.losses, against) < learnt

    twin = twin_of(subject.module)
    if change is not None:
        change(twin, readings)
    watcher = Watcher(run, original, deadline, enough, ascent=factor == 1.0, factor=factor)
    try:
        fit(twin, subject.plan, [batch], [watcher, Stop(limit)])
    except Exception as error:  # the user's own hooks, on a copy: said as a reason
        run.error = said_by(error)[:300]
    return run


def _reference(
    subject: Subject,
    batch: Any,
    constant: float,
    rate: float,
    steps: int,
    deadline: float,
    *,
    change: Callable[[LightningModule], None] | None = None,
) -> Run:
    run = Run(f"Adam at {rate:g}")
    twin = twin_of(subject.module)
    if change is not None:
        change(twin)
    shadows: Any = twin
    several = 1
    if not twin.automatic_optimization:
        several = max(1, len(optimizers_in(twin.configure_optimizers())))

    def configure_optimizers() -> Any:
        chosen = [Adam([p for p in twin.parameters() if p.requires_grad], lr=rate) for _ in range(several)]
        return chosen if several > 1 else chosen[0]

    shadows.configure_optimizers = configure_optimizers
    if twin.automatic_optimization:
        # what the module changes about its steps is on trial too: the reference takes plain ones
        for hook in ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "backward"):
            setattr(shadows, hook, getattr(LightningModule, hook).__get__(twin))

    def enough() -> bool:
        return bool(run.losses) and (not math.isfinite(run.losses[-1]) or _share(run.losses, constant) < _LEARNT)

    plain = Plan(max_epochs=-1, num_batches=10**6, precision=subject.plan.precision, device=subject.plan.device)
    watcher = Watcher(run, {id(p) for p in subject.module.parameters()}, deadline, enough, ascent=False)
    try:
        fit(twin, plain, [batch], [watcher, Stop(steps)])
    except Exception as error:
        run.error = said_by(error)[:300]
    return run


def _describe(optimizers: list[Optimizer]) -> str:
    groups = [(type(optimizer).__name__, optimizer.param_groups[0]) for optimizer in optimizers]
    # a schedule has scaled "lr" already, and keeps the base rate here
    return ", ".join(f"{name} at {float(group.get('initial_lr', group['lr'])):.3g}" for name, group in groups)


def _read_own(own: Run, constant: float, evidence: Evidence) -> None:
    if own.foreign or (own.error is not None and not own.losses):
        for key in ("pair/", "update/", "gradient/stale", "gradient/clip_norms"):
            evidence.skip(key, f"the module cannot be trained on a copy: {own.error}")
        return
    evidence.add({"gradient/stale": own.stale, "update/still": own.still, "update/rates": own.rates[:1000]})
    evidence.add({"pair/reached": sorted(own.reached), "gradient/later": own.later, "gradient/clip_norms": own.clip})
    evidence.add({"pair/own_name": own.name, "update/blocks": {n: _median(r[3:] or r) for n, r in own.blocks.items()}})
    peak = max(own.rates, default=0.0)
    warm = [ratio for ratio, rate in zip(own.ratios, own.rates, strict=False) if rate >= 0.1 * peak][3:]
    if warm:
        evidence.add({"update/ratio": _median(warm)})
    else:
        evidence.skip("update/ratio", "too few steps at the full rate")
    if own.ascent:
        evidence.add({"update/ascent": own.ascent})
    else:
        evidence.skip("update/ascent", "no step moved the weights")
    if not own.losses:
        evidence.skip("pair/", "the step returns no loss")
        return
    if not math.isfinite(constant):
        evidence.skip("pair/", "the loss is not finite at the start")
        return
    evidence.add(
        {
            "pair/own": _share(own.losses, constant),
            "pair/own_steps": len(own.losses),
            "pair/first_loss": own.losses[0],
            "pair/own_loss": best_of_last(own.losses),
            "pair/finite": math.isfinite(own.losses[-1]),
            "pair/constant": constant,
        }
    )
    if own.task_end is not None and evidence.get("loss/task") is not None:
        evidence.add({"pair/task_end": own.task_end})
    else:
        evidence.skip("pair/task_end", "no loss function of torch is called, or the optimization is manual")


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan
