"""TokenWeightedAccumulation: the gradient of a mean over all tokens, however they fall into batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from firstlight._require import require
from firstlight._shadows import Shadows
from firstlight.callbacks._gradients import multiply_

_TARGETS = ("target", "targets", "labels", "label")


@final
class TokenWeightedAccumulation(Callback):
    """Weight each micro batch of a step, on every rank, by the number of items that its loss is the mean of.

    Lightning divides the loss of a micro batch by ``accumulate_grad_batches`` and DDP averages over ranks, so a token
    of a short batch counts for more than one of a long batch, and the last, shorter window of an epoch for less. With
    this callback the gradient of a step is that of the mean over all its items.

    Role: actor; it changes gradients, before any other callback and clipping see the sum of a step.
    Reads: batches, as they reach ``training_step``. Writes: the loss that goes backward, by a factor, and the gradients
    of a step, by another; the loss that is returned and logged stays as it is. Logs: nothing.
    Law: ``sum(n_i * grad_i) / sum(n_i)`` over the micro batches and ranks of the step.

    Args:
        count: number of items in a batch that the loss is the mean of: a function of the batch or the name of a method
            of the module, returning a number or, without waiting for the device, a scalar tensor. Default:
            ``num_valid(batch)`` of the module if it has one; else the targets, if they are integers, that are not
            ``ignore_index``; else the number of samples.
        ignore_index: what the loss leaves out.

    Raises:
        TypeError: ``count`` is none of these.
        ValueError: the module has no method ``count``; a batch without a target that is a tensor, and no ``count``.

    A micro batch without items has weight 0: its loss may be NaN, as torch's is, but the gradient of it must be finite,
    as those of torch's losses are. A step without any item has a gradient of 0. Per step and beside DDP's own traffic
    one number is summed over the ranks; nothing is read from the device. Under manual optimization, and under
    strategies other than DDP and FSDP2 (``ModelParallelStrategy``), it stands aside with one line.
    """

    role: ClassVar[str] = "actor"

    def __init__(self, count: str | Callable[[Any], Any] | None = None, *, ignore_index: int = -100) -> None:
        ok = count is None or isinstance(count, str) or callable(count)
        require(ok, "count", count, "a function of the batch, the name of a method, or None", error=TypeError)
        self.count = count
        self.ignore_index = ignore_index
        self._shadows = Shadows()
        self._batch: Any = None
        self._total: Tensor | None = None  # items of the window so far, on this rank
        self._unit: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"unit": None if self._unit is None else float(self._unit)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        unit = state_dict["unit"]
        self._unit = None if unit is None else torch.tensor(unit, dtype=torch.float64)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._unit = None  # a checkpoint, if there is one, is loaded after this

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = None
        known = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy))
        if not known or not pl_module.automatic_optimization:
            why = "manual optimization" if known else type(trainer.strategy).__name__
            rank_zero_warn(f"TokenWeightedAccumulation stands aside under {why}: gradients are not its to weight")
            return
        count = self._counter(pl_module)
        inner = pl_module.backward

        def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            items = _scalar(count(self._batch), loss.device)
            self._total = items if self._total is None else self._total + items
            if self._unit is None:
                self._unit = _power_of_two(_sum_over_ranks(trainer, items) / trainer.world_size)
            self._unit = self._unit.to(items)
            last = not trainer.fit_loop._should_accumulate()
            total = _sum_over_ranks(trainer, self._total) if last else None
            inner(loss * (items / self._unit).to(loss.dtype), *args, **kwargs)
            if total is not None:
                self._divide(trainer, trainer.optimizers[0], total)

        self._shadows.put(pl_module, "backward", backward)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._total = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._total is not None:  # the last training_step of the window returned None: no backward of ours ended it
            self._divide(trainer, optimizer, self._total)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        self._shadows.lift()
        self._batch = self._total = None

    def _divide(self, trainer: Trainer, optimizer: Optimizer, total: Tensor) -> None:
        """Make ``sum(n_i / unit * grad_i) / (k * ranks)``, which Lightning and DDP have summed, a mean over items."""
        assert self._unit is not None
        self._total = None
        means = trainer.accumulate_grad_batches * trainer.world_size
        factor = torch.where(total > 0, means * self._unit / total, 0.0)
        owners = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        multiply_([p.grad._values() if p.grad.is_sparse else p.grad for p in owners], factor)

    def _counter(self, pl_module: LightningModule) -> Callable[[Any], Any]:
        if callable(self.count):
            return self.count
        name = self.count or "num_valid"
        method: Any = getattr(pl_module, name, None)
        require(self.count is None or callable(method), "count", self.count, "a method of the module")
        return method if callable(method) else self._valid_targets

    def _valid_targets(self, batch: Any) -> Tensor | int:
        target: Any = None
        if isinstance(batch, Mapping):
            target = next((batch[name] for name in _TARGETS if name in batch), None)
        elif isinstance(batch, (tuple, list)) and len(batch) > 1:
            target = batch[1]
        expected = f"(input, target) or a mapping with one of {', '.join(_TARGETS)}; or pass count="
        require(isinstance(target, Tensor) and target.ndim > 0, "batch", type(batch).__name__, expected)
        assert isinstance(target, Tensor)
        return len(target) if target.is_floating_point() else (target != self.ignore_index).sum()


def _scalar(items: Any, device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if isinstance(items, Tensor):
        return items.detach().to(device, dtype)
    return torch.full((), float(items), dtype=dtype, device=device)  # a fill, where a copy would wait for the device


def _sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    if trainer.world_size == 1:
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)  # strategy.reduce puts a barrier before it
    return value


def _power_of_two(value: Tensor) -> Tensor:
    """Return the nearest power of two: weights in units of it are near 1, so that fp16 gradients stay in their range.

    >>> _power_of_two(torch.tensor([0.0, 1.0, 700.0])).tolist()
    [1.0, 1.0, 512.0]
    """
    return torch.exp2(torch.log2(value.clamp(min=1.0)).round())
