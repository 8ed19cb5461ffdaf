"""GradientMonitor: gradient norms before and after clipping, clip rate, non-finite steps, update ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight._require import require
from firstlight.callbacks._gradient_listener import GradientListener
from firstlight.callbacks._gradients import gradients, norms_of
from firstlight.callbacks._packages import lightning_module_class


@final
class GradientMonitor(Callback):
    """Watch the gradients of each optimizer step without waiting for the device.

    Norms are 2-norms over the parameters of the optimizer, accumulated over the window and unscaled. Between log
    steps everything stays on the device in one small tensor; nothing is read back before Lightning writes its logs.

    Role: observer.
    Reads: ``param.grad`` before clipping and, where clipping is not torch's by norm, again after it.
    Writes: log entries only.
    Logs, every ``every_n_steps`` (default: the Trainer's ``log_every_n_steps``): ``grad/norm/total`` and
    ``grad/norm/<block>`` before clipping; ``grad/clipped_norm`` after it and ``grad/clip_rate``, the fraction of steps
    clipped since the last entry (both only if something clips); ``grad/nonfinite_steps`` since the start;
    ``update/ratio/<block>``, the norm of the step's change of the weights over the norm of the weights.

    Args:
        depth: blocks are modules at this depth of the LightningModule: 1 gives ``model``, 2 gives ``model.head``.
        every_n_steps: optimizer steps between entries.

    Raises:
        ValueError: ``depth`` or ``every_n_steps`` below 1.

    Under manual optimization the norm is the one that the optimizer sees, after any clipping of the user's own.
    Not supported: DeepSpeed, which keeps gradients to itself; there it stays silent.
    """

    role: ClassVar[str] = "observer"

    def __init__(self, *, depth: int = 2, every_n_steps: int | None = None) -> None:
        require(depth >= 1, "depth", depth, "one or more")
        require(every_n_steps is None or every_n_steps >= 1, "every_n_steps", every_n_steps, "one or more")
        self.depth = depth
        self.every_n_steps = every_n_steps
        self._nonfinite_before = 0.0
        self._listener: GradientListener | None = None
        self._forget()

    def _forget(self) -> None:
        self._window: Tensor | None = None  # steps, clipped steps, non-finite steps since the last entry
        self._nonfinite: Tensor | None = None
        self._pending: list[tuple[Optimizer, Tensor]] = []  # steps of this batch, with the norm before clipping
        self._blocks: dict[int, str] = {}
        self._weights: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self._values: dict[str, Tensor] = {}
        self._last_step = -1

    @property
    def state_key(self) -> str:
        return self._generate_state_key(depth=self.depth)  # two depths may be watched side by side

    def state_dict(self) -> dict[str, Any]:
        count = self._nonfinite_before + (0.0 if self._nonfinite is None else float(self._nonfinite))
        return {"nonfinite_steps": count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._nonfinite_before = float(state_dict.get("nonfinite_steps", 0.0))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()
        if trainer.global_step == 0:
            self._nonfinite_before = 0.0
        clip = trainer.gradient_clip_val
        self._clip_value = float(clip) if clip else None
        self._by_value = trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE
        # Clipping that is not torch's by norm has no closed form for the norm after it: it is measured.
        own = is_overridden("configure_gradient_clipping", pl_module, parent=lightning_module_class(pl_module))
        self._measure_after = own or (self._clip_value is not None and self._by_value)
        self._clips = self._measure_after or self._clip_value is not None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step == self._last_step and any(known is optimizer for known, _ in self._pending):
            return  # LBFGS evaluates its closure several times a step
        self._last_step = trainer.global_step
        owners, grads = gradients(optimizer)
        if not grads:
            return
        norms = norms_of(grads) / _scale(trainer, optimizer, grads[0].device)
        total = torch.linalg.vector_norm(norms)
        self._pending.append((optimizer, total))
        if self._listener is not None:
            self._listener.hear_norms(optimizer, owners, norms, total)
        if self._should_log(trainer):
            for block, members in self._members(pl_module, owners).items():
                self._values[f"grad/norm/{block}"] = torch.linalg.vector_norm(norms[members])
                weights: list[Tensor] = [owners[member] for member in members]
                self._weights[block] = (weights, [weight.detach().clone() for weight in weights])
        if not self._measure_after:
            clip = self._clip_value
            clipped = total > clip if clip is not None else torch.zeros_like(total, dtype=torch.bool)
            self._count(optimizer, total, clipped)
            if clip is not None:
                # as clip_grad_norm_ does it
                self._values["grad/clipped_norm"] = total * torch.clamp(clip / (total + 1e-6), max=1.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._pending:
            return  # no optimizer stepped: inside an accumulation window
        totals = [total for _, total in self._pending]
        if self._measure_after:
            for optimizer, total in self._pending:
                grads = gradients(optimizer)[1]  # none where clipping has left the step out
                after = torch.linalg.vector_norm(norms_of(grads)) if grads else torch.zeros_like(total)
                self._count(optimizer, total, after < total * (1 - 1e-6))
                self._values["grad/clipped_norm"] = after
        self._pending = []
        if self._should_log(trainer):
            self._values["grad/norm/total"] = torch.linalg.vector_norm(torch.stack(totals))
            self._log(pl_module)

    def _count(self, optimizer: Optimizer, total: Tensor, clipped: Tensor) -> None:
        finite = torch.isfinite(total)
        step = torch.stack([torch.ones_like(total), (clipped & finite).to(total.dtype), (~finite).to(total.dtype)])
        self._window = step if self._window is None else self._window + step
        if self._listener is not None:
            self._listener.hear_count(optimizer, step)

    def _log(self, pl_module: LightningModule) -> None:
        assert self._window is not None
        steps, clipped, nonfinite = self._window.unbind()
        self._nonfinite = nonfinite if self._nonfinite is None else self._nonfinite + nonfinite
        self._values["grad/nonfinite_steps"] = self._nonfinite + self._nonfinite_before
        if self._clips:
            self._values["grad/clip_rate"] = clipped / steps
        for block, (weights, before) in self._weights.items():
            change = norms_of(torch._foreach_sub([weight.detach() for weight in weights], before))
            size = torch.linalg.vector_norm(norms_of(before))
            self._values[f"update/ratio/{block}"] = torch.linalg.vector_norm(change) / size.clamp(min=1e-12)
        for key, value in self._values.items():
            pl_module.log(key, value, on_step=True, on_epoch=False, batch_size=1)
        if self._listener is not None:
            self._listener.hear_values(self._values)
        self._window, self._weights, self._values = None, {}, {}

    def _should_log(self, trainer: Trainer) -> bool:
        if self.every_n_steps is None:
            return bool(trainer._logger_connector.should_update_logs)
        return (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % self.every_n_steps == 0

    def _members(self, pl_module: LightningModule, owners: Sequence[nn.Parameter]) -> dict[str, list[int]]:
        """Return the positions in ``owners`` of each block's parameters."""
        if any(id(parameter) not in self._blocks for parameter in owners):
            self._blocks = {id(p): self._block(name) for name, p in pl_module.named_parameters()}
        members: dict[str, list[int]] = {}
        for position, parameter in enumerate(owners):
            members.setdefault(self._blocks.get(id(parameter), "other"), []).append(position)
        return members

    def _block(self, parameter_name: str) -> str:
        path = parameter_name.split(".")[:-1]
        return ".".join(path[: self.depth]) or "root"


def _scale(trainer: Trainer, optimizer: Optimizer, device: torch.device) -> Tensor | float:
    """Return the loss scale still in the gradients: fused optimizers unscale inside their kernel."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    scale: Tensor = scaler._get_scale_async()
    return scale.to(device)
