"""What the preflight is held against: other tools, and the published rules of two that run under TensorFlow only.

A rival says rule names, each as an error or as a warning by its own severities. ``WATCHERS`` look on at a training
that goes its way; ``PROBES`` run programs of their own making. ``RIVALS`` holds what a reader has to know of each, and
which of its rules name the cause of which fault: we counted generously, a symptom that its text explains by the fault
is enough.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from benchmark import Case
from helpers import trainer


@dataclass
class Said:
    """What a rival said of one run: names of rules."""

    errors: set[str] = field(default_factory=set)
    warnings: set[str] = field(default_factory=set)
    raised: str = ""  # an exception of the rival itself

    def record(self) -> dict[str, Any]:
        said = {"errors": sorted(self.errors), "warnings": sorted(self.warnings - self.errors), "raised": self.raised}
        return {key: value for key, value in said.items() if value}


@dataclass(frozen=True, kw_only=True)
class Rival:
    """``causes`` are, for the finding of a case, the rules that name it; ``module`` what must be importable."""

    title: str
    note: str
    causes: dict[str, set[str]]
    module: str = ""

    @property
    def installed(self) -> bool:
        return not self.module or importlib.util.find_spec(self.module) is not None


class Watcher(Callback):
    """A rival that looks on."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.said = Said()


def guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Let an exception of the rival end its watch, not the training."""

    @functools.wraps(hook)
    def call(self: Watcher, *args: Any) -> None:
        if self.said.raised:
            return
        try:
            with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
                hook(self, *args)
        except Exception as error:
            self.said.raised = f"{type(error).__name__}: {error}"[:200]

    return call


def loss_of(outputs: Any) -> Tensor | None:
    """Return the loss of a training step; None under manual optimization that returns none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return loss if isinstance(loss, Tensor) else None


class TorchAudit(Watcher):
    """The callback of its examples/demo_lightning.py, which looks at every step."""

    @guarded
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from torch_audit import Auditor
        from torch_audit.core import Phase
        from torch_audit.validators.builtin.data import DataValidator

        self.phases = Phase
        self.auditor = Auditor(pl_module, optimizer=trainer.optimizers[0], every_n_steps=1)
        self.not_data = [each for each in self.auditor.validators if not isinstance(each, DataValidator)]
        self.auditor.attach()
        self.auditor.audit_static(step=0)
        self.auditor.audit_init(step=0)

    @guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch = batch
        self.auditor.step = trainer.global_step
        # the demo leaves this out, and its counts of calls then go over all steps and the validation
        self.auditor._call_phase_start(self.auditor._make_context(self.phases.FORWARD, step=None, batch=batch))
        self.auditor.audit_data(batch, step=trainer.global_step)

    @guarded
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.audit(trainer, self.phases.BACKWARD, self.auditor.validators)

    @guarded
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.audit(trainer, self.phases.FORWARD, self.not_data)
        self.audit(trainer, self.phases.OPTIMIZER, self.auditor.validators)

    def audit(self, trainer: Trainer, phase: Any, validators: Any) -> None:
        context = self.auditor._make_context(phase, step=trainer.global_step, batch=self.batch)
        self.auditor.runner.run_step(context, validators=validators)

    @guarded
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for finding in self.auditor.finish().findings:
            # not of learning: a validator of its own that crashed, and shapes that a tensor core would like better
            if finding.rule_id not in ("TA000", "TA200"):
                rules = {"ERROR": self.said.errors, "FATAL": self.said.errors, "WARN": self.said.warnings}
                rules.get(finding.severity.value, set()).add(finding.rule_id)
        self.auditor.detach()


class Torchmortem(Watcher):
    """As in its README: attached to model and optimizer, given the loss after each step."""

    @guarded
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from torchmortem import Autopsy

        self.autopsy = Autopsy(pl_module, optimizer=trainer.optimizers[0])
        self.autopsy.attach()

    @guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = loss_of(outputs)
        self.autopsy.step(**({} if loss is None else {"loss": loss.item()}))

    @guarded
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.autopsy.detach()
        for finding in self.autopsy.get_report().findings:
            rules = {"CRITICAL": self.said.errors, "WARNING": self.said.warnings}
            rule = finding.category + (" high" if "too high" in finding.title else "")
            rule += " low" if "too low" in finding.title else ""
            rule += " vanishing" if "anish" in finding.title else ""
            rules.get(finding.severity.name, set()).add(rule)


class AutoTrainerRules(Watcher):
    """Its monitor.py with the parameters of its demo: looks every third epoch, judges from half of the epochs on.

    Left out are the two rules that take the last layer for one that gives probabilities (its sum above 1.1, its name
    beside that of the loss): they would name every classifier that gives logits.
    """

    gap, satisfied, large_output = 3, 0.7, 10.0
    low_ratio, low_norm, high_ratio, zeros = 1e-3, 1e-4, 70.0, 0.7
    swing, swings, gain, large_loss = 0.03, 0.2, 0.01, 1e3

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.history: dict[str, list[float]] = {"loss": [], "acc": [], "val_loss": [], "val_acc": []}
        self.found: set[str] = set()  # once seen, a feature stays
        self.judged_half = False
        self.losses: list[float] = []

    @guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = loss_of(outputs)
        if loss is not None:
            self.losses.append(float(loss.detach()))

    @guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.said.errors:  # it stops the training at its first verdict
            return
        train, val = scores(pl_module, trainer)
        self.history["loss"].append(sum(self.losses) / len(self.losses))
        self.history["acc"].append(train["val/accuracy"])
        self.history["val_loss"].append(val["val/loss"])
        self.history["val_acc"].append(val["val/accuracy"])
        self.losses.clear()
        if trainer.current_epoch % self.gap == 0:
            self.look(pl_module, trainer)

    def look(self, module: LightningModule, trainer: Trainer) -> None:
        epoch = trainer.current_epoch
        half = epoch >= 0.5 * self.case.epochs and not self.judged_half
        self.judged_half |= half
        judges = half or bool(self.found & {"nan_loss", "abnormal_loss", "slow"})
        batch = [tensor[: trainer.datamodule.batch_size] for tensor in trainer.datamodule.train_set.tensors]
        logged, called = evaluated(module, batch)
        hidden = [output.detach().abs().mean() for _, output in called[:-1] if isinstance(output, Tensor)]
        params = [param for param in module.parameters() if param.requires_grad]
        grads = [g for g in torch.autograd.grad(logged["val/loss"], params, allow_unused=True) if g is not None]
        if judges and any(float(size) >= self.large_output for size in hidden):
            self.found.add("improper data")
        self.gradients(grads)
        self.curves(epoch)
        if any(not param.isfinite().all() for param in module.parameters()):
            self.found.add("nan")
        if judges:
            self.said.errors |= self.verdict()

    def gradients(self, grads: list[Tensor]) -> None:
        if any(not grad.isfinite().all() for grad in grads):
            self.found.add("nan")
            return
        norms = [float(grad.norm()) for grad in grads if grad.ndim > 1]
        ratio = norms[0] / norms[-1] if norms[-1] else math.nan
        if ratio < self.low_ratio and norms[0] < self.low_norm:
            self.found.add("vanishing")
        if ratio > self.high_ratio:
            self.found.add("exploding")
        if sum(int((grad == 0).sum()) for grad in grads) >= self.zeros * sum(grad.numel() for grad in grads):
            self.found.add("dying ReLU")

    def curves(self, epoch: int) -> None:
        losses, accuracies = (
            self.history["loss"] + self.history["val_loss"],
            (self.history["acc"], self.history["val_acc"]),
        )
        if not all(math.isfinite(loss) for loss in losses) or max(losses) >= self.large_loss:
            self.found.add("nan_loss")
            return
        if min(losses) < 0:
            self.found.add("abnormal_loss")
        if epoch + 1 >= 0.3 * self.case.epochs - self.gap:
            if oscillates(self.history["acc"], self.swing, self.swings):
                self.found.add("oscillating")
            if max(map(max, accuracies)) < self.satisfied:
                self.found.add("low")
            gains = [b - a for accuracy in accuracies for a, b in itertools.pairwise(accuracy)]
            if max(gains, default=0.0) < self.gain:
                self.found.add("slow")

    def verdict(self) -> set[str]:
        """Return its issues; where several hold it keeps one, we keep all."""
        found = self.found
        issues = found & {"improper data", "oscillating"}
        if "abnormal_loss" in found:
            issues.add("improper loss")
        elif "nan_loss" in found and "nan" in found:
            issues.add("exploding")
        if found & {"low", "slow"}:
            first = next((name for name in ("dying ReLU", "exploding", "vanishing") if name in found), None)
            if first is not None:
                issues.add(first)
            elif {"low", "slow"} <= found and "improper data" not in found:
                issues.add("slow convergence")
        return issues


def oscillates(accuracies: list[float], swing: float, share: float) -> bool:
    inner = list(zip(accuracies, accuracies[1:], accuracies[2:], strict=False))
    highs = [b for a, b, c in inner if b >= a and b >= c]
    lows = [b for a, b, c in inner if b <= a and b <= c]
    return sum(high - low >= swing for high, low in zip(highs, lows, strict=False)) >= share * len(accuracies)


def evaluated(module: LightningModule, batch: Any) -> tuple[dict[str, Tensor], list[tuple[nn.Module, Any]]]:
    """Return what a validation step logs, and the leaf modules that it calls with their outputs, in eval mode."""
    logged: dict[str, Tensor] = {}
    called: list[tuple[nn.Module, Any]] = []
    leaves = [each for each in module.modules() if not list(each.children()) and not isinstance(each, _Loss)]
    hooks = [each.register_forward_hook(lambda *call: called.append((call[0], call[2]))) for each in leaves]
    modes = {each: each.training for each in module.modules()}
    module.eval()
    module.log = lambda name, value, **_: logged.__setitem__(name, value)  # type: ignore[method-assign]
    try:
        module.validation_step(batch, 0)
    finally:
        del module.log
        for hook in hooks:
            hook.remove()
        for each, mode in modes.items():
            each.training = mode
    return logged, called


def scores(module: LightningModule, trainer: Trainer) -> list[dict[str, float]]:
    """Return what a validation step logs of the whole training split, and of the validation split."""
    splits = trainer.datamodule.train_set, trainer.datamodule.val_set
    with torch.no_grad():
        return [{key: float(value) for key, value in evaluated(module, split.tensors)[0].items()} for split in splits]


class UmlautRules(Watcher):
    """Its heuristics.py.

    Left out is "missing softmax": it looks for the name in the last layer, and is silent where the loss says that it
    takes logits, as torch's does.
    """

    last: tuple[float, float] | None = None

    @guarded
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses: list[float] = []
        affine = (nn.Linear, nn.Conv1d, nn.Conv2d)
        for row in (list(each) for each in pl_module.modules() if isinstance(each, nn.Sequential)):
            if any(isinstance(a, affine) and isinstance(b, affine) for a, b in itertools.pairwise(row)):
                self.said.errors.add("missing activation")
        with torch.no_grad():
            layers = [layer for layer, _ in evaluated(pl_module, trainer.datamodule.val_set.tensors)[1]]
        last = layers[-2] if isinstance(layers[-1], nn.Softmax) else layers[-1]
        if type(last).__module__ == "torch.nn.modules.activation":
            self.said.errors.add("final activation")
        if any(isinstance(each, nn.Dropout) and each.p > 0.5 for each in layers):
            self.said.errors.add("high dropout")

    @guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.inputs = batch[0]
        loss = loss_of(outputs)
        if loss is not None:
            self.losses.append(float(loss.detach()))

    @guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        x, errors = self.inputs, self.said.errors
        if float(x.max()) > 1 or float(x.min()) < -1:
            errors.add("input not normalized")
        if not x.is_floating_point():
            errors.add("input not floating")
        rates = [float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if max(rates) > 0.01:
            errors.add("learning rate high")
        elif min(rates) < 1e-7:
            errors.add("learning rate low")
        if not self.losses:  # manual optimization that returns none
            return
        loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        if math.isnan(loss) and bool(x.isnan().any()):
            errors.add("NaN in input")
        train, val = scores(pl_module, trainer)
        now = (loss, val.get("val/loss", math.nan))
        if self.last is not None and now[1] > self.last[1] and now[0] <= self.last[0]:
            errors.add("overfitting")
        self.last = now
        if trainer.current_epoch >= 3 and "val/accuracy" in val:
            own, accuracy = train["val/accuracy"], val["val/accuracy"]
            if accuracy > 0.95 or accuracy - own > 0.05:
                errors.add("overconfident validation accuracy")


def fast_dev_run(case: Case, *, buggy: bool, seed: int) -> Said:
    """Lightning's own rehearsal, one batch of each loop, with autograd's search for NaN."""
    module, data, kwargs = case.build(buggy, seed)
    kwargs = {key: value for key, value in kwargs.items() if key != "max_epochs"}
    seed_everything(seed, verbose=False)
    said = Said()
    try:
        trainer(**kwargs, fast_dev_run=True, detect_anomaly=True).fit(module, data)
    except Exception as error:  # its way of raising the alarm
        said.errors.add(type(error).__name__)
    return said


def checklist(case: Case, *, buggy: bool, seed: int) -> Said:
    """Run the assertions of neural-net-checklist, in its order and with its defaults; the first that fails ends it."""
    from neural_net_checklist import torch_diagnostics

    _, data, _ = case.build(buggy, seed)
    data.setup("fit")
    batch = tuple(next(iter(data.train_dataloader())))
    classes = int(data.train_set.tensors[1].max()) + 1
    seed_everything(seed, verbose=False)
    said = Said()
    silence = io.StringIO()

    def factory() -> nn.Module:
        return case.build(buggy, seed)[0]

    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            if case.id == LANGUAGE:
                torch_diagnostics.assert_all_for_causal_llm_cross_entropy_loss(
                    factory, batch, embedding_layer_name="embedding", vocab_size=classes
                )
            else:
                torch_diagnostics.assert_all_for_classification_cross_entropy_loss(factory, batch, num_classes=classes)
    except AssertionError:
        said.errors.add(silence.getvalue().split("🔍")[-1].splitlines()[0].strip(" ."))
    except Exception as error:
        said.raised = f"{type(error).__name__}: {error}"[:200]
    return said


LANGUAGE = "G04"
# Programs whose loss is cross-entropy over classes, for which it is made.
CHECKLIST_CASES = {
    *("D01", "D03", "D04", "D05", "D09", "D11", "D12", "D13", "D14", "D15", "D16", "D17", "D18", "D19", "D20"),
    *("G01", "G02", LANGUAGE, "G09", "G10", "G11", "G12", "G13", "G14", "G15", "G18", "G19", "G20"),
}

WATCHERS: dict[str, type[Watcher]] = {
    "torch-audit": TorchAudit,
    "torchmortem": Torchmortem,
    "AutoTrainer": AutoTrainerRules,
    "UMLAUT": UmlautRules,
}
PROBES: dict[str, Callable[..., Said]] = {"fast_dev_run": fast_dev_run, "neural-net-checklist": checklist}

RIVALS = {
    "torch-audit": Rival(
        title="torch-audit 0.3.0",
        module="torch_audit",
        note="watches a whole training through the callback of its Lightning demo, at every step (its default of every "
        "1000th would see the first alone); without its hint about shapes for tensor cores, which nearly all runs get",
        causes={"input_scale": {"TA301"}, "dead_units": {"TA105"}, "nonfinite_data": {"TA100"}},
    ),
    "torchmortem": Rival(
        title="torchmortem 0.1.1",
        module="torchmortem",
        note="watches a whole training; its highest severity is taken for an error",
        causes={
            "lr_too_high": {"update_ratio high"},
            "lr_too_low": {"update_ratio low"},
            "vanishing": {"gradient_flow vanishing"},
            "dead_units": {"dead_units"},
            "init_loss": {"weight_norm"},
        },
    ),
    "neural-net-checklist": Rival(
        title="neural-net-checklist 1.1.0",
        module="neural_net_checklist",
        note="takes model and one batch of a classifier or language model with cross-entropy, and trains with an Adam "
        "of its own: what is wrong with the optimizer it cannot see; other losses it is not made for",
        causes={
            "init_loss": {"Checking loss at initialization"},
            "batch_mixing": {"Checking forward batch independence", "Checking backward batch independence"},
            "dead_units": {"Checking non-zero gradients"},
        },
    ),
    "fast_dev_run": Rival(
        title="Lightning's fast_dev_run and detect_anomaly",
        note="one batch of training and validation; an exception is an alarm",
        causes={},
    ),
    "AutoTrainer": Rival(
        title="rules of AutoTrainer, re-stated",
        note="its thresholds in PyTorch on a whole training of the programs that have an accuracy; without its two "
        "rules about a last layer that gives probabilities",
        causes={
            "input_scale": {"improper data"},
            "vanishing": {"vanishing"},
            "dead_units": {"dying ReLU"},
            "lr_too_low": {"slow convergence"},
            "lr_too_high": {"exploding", "oscillating"},
        },
    ),
    "UMLAUT": Rival(
        title="rules of UMLAUT, re-stated",
        note="its thresholds in PyTorch on a whole training; without its rule that looks for a softmax by name",
        causes={
            "input_scale": {"input not normalized"},
            "nonfinite_data": {"NaN in input"},
            "lr_too_high": {"learning rate high"},
            "lr_too_low": {"learning rate low"},
            "target_out_of_range": {"final activation"},
        },
    ),
}


def applies(rival: str, case: Case) -> bool:
    """Whether a rival is made for such a program."""
    if rival == "neural-net-checklist":
        return case.id in CHECKLIST_CASES
    if rival == "AutoTrainer":
        return case.metric in ("val/accuracy", "val/balanced_accuracy")
    return True
