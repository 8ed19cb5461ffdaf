"""One trial: train a copy of a module on one batch and see how far the loss falls towards its floor."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.overrides import TorchFunctionMode

from firstlight.callbacks._trainer_view import TrainerView
from firstlight.losses import GaussianKLLoss
from firstlight.losses._floor import has_floor, loss_floor, module_floor
from firstlight.schedules import Constant

_GETS_PROBABILITIES = (
    "{} gets probabilities, not logits: remove the softmax or sigmoid at the end of the model, the loss applies its own"
)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
_TAKE_CLASSES = (F.cross_entropy, F.nll_loss, F.binary_cross_entropy_with_logits)
_PATCHED = ("forward", "training_step", "log", "log_dict", "print")


class LabelsOutOfRangeError(Exception):
    """A class index outside the classes; raised before the loss is called, since on CUDA that call ends the process."""


class Goal(NamedTuple):
    """How far a loss must come: at most ``left`` of what can be reduced; or, floor unknown, down by ``fall`` of it."""

    left: float
    fall: float


@dataclass
class Trial:
    """What one trial measured."""

    optimizer: str = ""
    learning_rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the task: named loss calls, without penalties
    floor: float | None = None
    error: str | None = None
    disconnected: bool = False
    misread: str | None = None  # a loss function that was given probabilities instead of logits, or the other way
    unreached: list[str] = field(default_factory=list)  # trainable parameters that no gradient reached

    @property
    def falls_through(self) -> bool:
        """Whether the loss went below the lowest value that it can have: it is not computed from what it asks for."""
        slack = 1e-3 * (1 + abs(self.floor or 0.0))
        return self.floor is not None and any(loss < self.floor - slack for loss in self.losses)

    def reached(self, goal: Goal) -> bool:
        """Whether the best of the last steps is near enough to the floor or, where that is unknown, far enough down."""
        last = [loss for loss in self.losses[-5:] if math.isfinite(loss)]
        if len(self.losses) < 2 or not math.isfinite(self.losses[0]) or not last:
            return False
        start, end = self.losses[0], min(last)
        if self.floor is None:
            return start - end >= goal.fall * abs(start)
        return end - self.floor <= goal.left * max(start - self.floor, 1e-12)


class LossRecorder(TorchFunctionMode):
    """Sees every loss call inside a step: its value and floor; and switches dropout off."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.floors: list[Tensor | None] = []
        self.misread: str | None = None
        self.first = True  # the batch is always the same: what can be said of it is said at the first step
        self._inside = 0
        self._trade = False

    @property
    def floor(self) -> float | None:
        """The lowest value of the sum; ``None`` if that of a part is not known, or if the parts trade off."""
        known = [floor for floor in self.floors if floor is not None]
        if len(known) < len(self.floors) or not known or (self._trade and len(known) > 1):
            return None
        return float(sum(known))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            kwargs["training"] = False
            return func(*args[:1], p=0.0, training=False)
        if func is F.scaled_dot_product_attention and "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        if not has_floor(func):
            return func(*args, **kwargs)
        if self.first and func in _TAKE_CLASSES:
            self._inspect(func, args, kwargs)
        value = func(*args, **kwargs)
        if not self._inside:
            self.add(value, loss_floor(func, *args, **kwargs) if self.first else None)
        return value

    def add(self, value: Tensor, floor: Tensor | None) -> None:
        self.values.append(value.detach().float().mean())
        self.floors.append(None if floor is None else floor.detach().float().mean())

    def _inspect(self, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        names = dict(zip(("input", "target"), args, strict=False)) | kwargs
        prediction, target = names["input"].detach(), names["target"]
        class_dim = 0 if prediction.ndim == 1 else 1
        if func is not F.binary_cross_entropy_with_logits and not target.is_floating_point():
            classes = prediction.shape[class_dim]
            counted = target[target != names.get("ignore_index", -100)]
            if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
                raise LabelsOutOfRangeError(
                    f"labels go from {int(counted.min())} to {int(counted.max())}, but the model has {classes} "
                    f"outputs: labels must be 0 to {classes - 1} (or ignore_index)"
                )
        if func is F.cross_entropy and prediction.ndim > 1 and prediction.shape[1] > 1:
            total = prediction.float().sum(1)
            if bool((prediction >= 0).all()) and bool((total - 1).abs().max() < 1e-2):
                self.misread = _GETS_PROBABILITIES.format("cross-entropy")
        if func is F.binary_cross_entropy_with_logits and bool(((prediction > 0) & (prediction < 1)).all()):
            self.misread = _GETS_PROBABILITIES.format("binary cross-entropy with logits")
        if func is F.nll_loss and bool((prediction.float().logsumexp(class_dim).abs() > 0.1).any()):
            self.misread = (
                "nll_loss gets no logarithms of probabilities and falls without end: end the model with log_softmax, "
                "or use cross-entropy on its logits"
            )

    def watch(self, module: nn.Module) -> contextlib.ExitStack:
        """Let losses that know their own floor (``minimum(prediction, target)``) speak for the calls inside them."""
        stack = contextlib.ExitStack()
        for layer in module.modules():
            if callable(getattr(layer, "minimum", None)):
                stack.callback(layer.register_forward_pre_hook(self._enter).remove)
                stack.callback(layer.register_forward_hook(self._leave, with_kwargs=True).remove)
        return stack

    def _enter(self, layer: nn.Module, args: Any) -> None:
        self._inside += 1

    def _leave(self, layer: nn.Module, args: Any, kwargs: Any, value: Tensor) -> None:
        self._trade = self._trade or isinstance(layer, GaussianKLLoss)  # what it gains, reconstruction loses
        floor = module_floor(layer, *args, **kwargs) if self.first else None
        self._inside -= 1
        self.add(value, floor)


def labels_fault(trainer: Trainer, pl_module: LightningModule, batch: Any) -> str | None:
    """Say that labels of ``batch`` are out of range, from one step of a copy that stops before the loss is called."""
    recorder = LossRecorder()
    try:
        twin = _twin(trainer, pl_module)
        with torch.no_grad(), recorder:
            _training_step(twin, batch)
    except LabelsOutOfRangeError as error:
        return str(error)
    except Exception:  # whatever else is wrong will show in the trial, or in the step itself
        return None
    return None


def run_trial(
    trainer: Trainer,
    pl_module: LightningModule,
    batch: Any,
    *,
    max_steps: int,
    soon: Goal,
    reference: float | None = None,
) -> Trial:
    """Train a copy of ``pl_module`` on ``batch``, with its own optimizer or a reference Adam at that rate."""
    trial = Trial()
    twin = _twin(trainer, pl_module)
    if reference is None:
        optimizer = _optimizer(twin)
    else:
        optimizer = Adam((parameter for parameter in twin.parameters() if parameter.requires_grad), lr=reference)
    trial.optimizer = type(optimizer).__name__
    trial.learning_rates = [float(group["lr"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if group.get("weight_decay"):
            group["weight_decay"] = 0.0
    reached: dict[str, Tensor] = {}
    recorder = LossRecorder()
    warmup = Constant(warmup=0.1)
    check_every = 10
    with recorder.watch(twin):
        for step in range(max_steps):
            for group, rate in zip(optimizer.param_groups, trial.learning_rates, strict=True):
                _set_rate(group, rate * warmup.factor(step, max_steps) * _cooldown(step, max_steps))
            try:
                if not _step(trainer, twin, batch, optimizer, recorder, trial):
                    break
            except LabelsOutOfRangeError as error:
                trial.error = str(error)
                break
            for name, parameter in twin.named_parameters():
                if parameter.grad is not None:
                    moved = (parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad) != 0
                    reached[name] = reached.get(name, torch.zeros((), dtype=torch.bool)).to(moved.device) | moved.any()
            if (step + 1) % check_every == 0:
                done = not math.isfinite(trial.losses[-1]) or trial.reached(soon)
                # every rank must take the same number of steps: synchronized batch norm waits for all of them
                if trainer.strategy.reduce_boolean_decision(done, all=True):
                    break
    trial.misread = recorder.misread
    if not trial.error and not trial.disconnected:
        trial.unreached = [
            name
            for name, parameter in twin.named_parameters()
            if parameter.requires_grad and not bool(reached.get(name, torch.tensor(False)))
        ]
    return trial


def _cooldown(step: int, max_steps: int) -> float:
    """Full rate for two thirds of the trial, then a line towards zero, so that a high rate settles."""
    return min(1.0, 3.0 * (1.0 - step / max_steps))


def _step(
    trainer: Trainer, twin: LightningModule, batch: Any, optimizer: Optimizer, recorder: LossRecorder, trial: Trial
) -> bool:
    """Take one step; return whether it could be taken."""
    recorder.values, recorder.floors = [], []
    recorder.first = not trial.losses
    optimizer.zero_grad()
    # fp16 gradients underflow without the scaler, which belongs to the real run: the trial uses full precision there
    amp = contextlib.nullcontext() if trainer.precision == "16-mixed" else trainer.precision_plugin.train_step_context()
    with amp, recorder:
        output = _training_step(twin, copy.deepcopy(batch))
    loss = output["loss"] if isinstance(output, dict) else output
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        trial.disconnected = True
        return False
    if recorder.first and getattr(twin, "reaches_floor", True):
        trial.floor = recorder.floor
    # Without a floor for all of it, terms may pull against each other: the loss of the step knows their weights.
    task = loss.detach().float() if trial.floor is None else torch.stack(recorder.values).sum()
    # What is added to the loss by no known function may be what is not finite.
    trial.losses.append(float(task) if math.isfinite(float(loss.detach())) else math.nan)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return True


def _training_step(twin: LightningModule, batch: Any) -> Any:
    indexed = is_param_in_hook_signature(twin.training_step, "batch_idx", min_args=2)
    return twin.training_step(batch, 0) if indexed else twin.training_step(batch)


def _twin(trainer: Trainer, pl_module: LightningModule) -> LightningModule:
    """Copy the module, with a mere view of its Trainer, without logging, in training mode, with penalties off."""
    twin = copy.deepcopy(pl_module)
    for name in _PATCHED:  # patches on the instance (torch.compile, other tools) stay bound to the original
        twin.__dict__.pop(name, None)
    twin._trainer = TrainerView(trainer)  # type: ignore[assignment]
    twin.log = twin.log_dict = twin.print = lambda *_, **__: None  # type: ignore[method-assign]
    twin.zero_grad()
    for layer in twin.modules():
        if type(layer).__name__.endswith("Penalty") and isinstance(getattr(layer, "weight", None), float):
            layer.weight = 0.0  # type: ignore[assignment]
        if isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)):
            layer.dropout = 0.0  # given to fused kernels that the recorder cannot see
    return twin


def _optimizer(twin: LightningModule) -> Optimizer:
    """Return the user's own optimizer on the copy; AdamW if ``configure_optimizers`` needs more of the Trainer."""
    try:
        configured: Any = twin.configure_optimizers()
    except AttributeError as error:
        if "belongs to the real run" not in str(error):
            raise
        return torch.optim.AdamW((p for p in twin.parameters() if p.requires_grad), lr=1e-3, weight_decay=0.0)
    while not isinstance(configured, Optimizer):
        configured = configured["optimizer"] if isinstance(configured, dict) else configured[0]
    return configured


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"] = group["lr"].clone().fill_(rate)
    else:
        group["lr"] = rate
