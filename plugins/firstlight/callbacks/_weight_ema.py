"""WeightEMA: an exponential moving average of the weights, at the cost of one foreach lerp a step."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from firstlight._require import require


@final
class WeightEMA(Callback):
    """Keep ``average = decay * average + (1 - decay) * weights``, validate with it, and end the run with it.

    Takes the place of Lightning's ``EMAWeightAveraging`` and means the same: the first update copies; validation sees
    the average; a checkpoint's ``state_dict`` holds the average and its ``current_model_state`` the weights in
    training, so that ``load_from_checkpoint`` gives the average and a resume goes on exactly; after ``fit`` the module
    holds the average. Floating-point buffers are averaged too, counters are the current ones.

    The average of 16-bit weights is kept in float32: a step of ``1 - decay = 1e-3`` is below their resolution.

    Role: actor; training itself is what it was. It sets the weights during validation and once at the end.
    Reads: weights and buffers after each optimizer step. Writes: see the role. Logs: nothing.
    Source: Polyak and Juditsky 1992; for networks, Tarvainen and Valpola 2017, arXiv:1703.01780.

    Args:
        decay: per optimizer step, in [0, 1).
        every_n_steps: update after every n steps, with ``decay ** n``.
        start_step: no average before this step; the first update after it copies.

    Raises:
        ValueError: an argument out of range.

    Under FSDP, ModelParallel and DeepSpeed it stands aside with one line: a shard has no full state to swap.
    """

    role: ClassVar[str] = "actor"
    in_step: ClassVar[bool] = False  # experiments on copies go without it

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1, *, start_step: int = 0) -> None:
        require(0 <= decay < 1, "decay", decay, "at least 0 and below 1")
        require(every_n_steps >= 1, "every_n_steps", every_n_steps, "one or more optimizer steps")
        require(start_step >= 0, "start_step", start_step, "zero or more optimizer steps")
        self.decay = decay
        self.every_n_steps = every_n_steps
        self.start_step = start_step
        self._loaded: dict[str, Tensor] = {}
        self._forget()

    def _forget(self) -> None:
        self._averages: dict[str, Tensor] = {}
        self._live: list[Tensor] = []
        self._narrow = False  # whether some of them are 16-bit
        self._kept: list[Tensor] = []  # the weights in training, while validation sees the average
        self._last_step = 0
        self._aside = False

    def state_dict(self) -> dict[str, Any]:
        return {"averages": {name: average.cpu() for name, average in self._averages.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = dict(state_dict["averages"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._loaded = {}
            self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
            self._aside = True
            rank_zero_warn(f"WeightEMA stands aside under {type(trainer.strategy).__name__}: it shards the state")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._aside:
            return
        self._last_step = trainer.global_step
        state = _floating_state(pl_module)
        self._live = list(state.values())
        self._narrow = any(_wide(value) is not value for value in self._live)
        for name, average in self._loaded.items():
            require(name in state, "checkpoint", name, "of the same model: it averages a weight that is not here")
            self._averages[name] = average.to(state[name].device, copy=True)
        self._loaded = {}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._aside or step == self._last_step:
            return  # inside an accumulation window
        before, self._last_step = max(self._last_step, self.start_step), step
        # Several optimizers make several steps a batch: what counts is whether a multiple lies between.
        start, every = self.start_step, self.every_n_steps
        if step <= start or (step - start) // every == (before - start) // every:
            return
        if not self._averages:
            self._averages = {name: _wide(value).clone() for name, value in _floating_state(pl_module).items()}
            return
        current = [_wide(value) for value in self._live] if self._narrow else self._live
        torch._foreach_lerp_(list(self._averages.values()), current, 1.0 - self.decay**self.every_n_steps)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._averages and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._kept = [value.detach().clone() for value in self._live]
            self._show_averages()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._put_back()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._averages:
            self._show_averages()
            self._forget()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._averages:
            return
        # The names are Lightning's, so that its callback can take the run up, and ours one of its.
        current = checkpoint["current_model_state"] = checkpoint["state_dict"]
        averages = {name: average.to(current[name].dtype) for name, average in self._averages.items()}
        checkpoint["state_dict"] = {**current, **averages}
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(1)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or "current_model_state" not in checkpoint:
            return
        averages = checkpoint["state_dict"]
        self._loaded = {name: _wide(averages[name]).clone() for name in _floating_state(pl_module) if name in averages}
        pl_module.load_state_dict(checkpoint["current_model_state"])

    @torch.no_grad()
    def _show_averages(self) -> None:
        for live, average in zip(self._live, self._averages.values(), strict=True):
            live.copy_(average)

    @torch.no_grad()
    def _put_back(self) -> None:
        for live, kept in zip(self._live, self._kept, strict=False):
            live.copy_(kept)
        self._kept = []


def _floating_state(pl_module: LightningModule) -> dict[str, Tensor]:
    """Return the weights and buffers that can be averaged, each tensor once, by its name in the state dict."""
    state: dict[str, Tensor] = pl_module.state_dict()
    seen: set[int] = set()
    found = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.data_ptr() not in seen:
            seen.update((value.data_ptr(),) if value.numel() else ())
            found[name] = value
    return found


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
