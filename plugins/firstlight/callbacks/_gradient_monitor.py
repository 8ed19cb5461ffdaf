"""GradientMonitor: gradient norms before and after clipping, clip rate, steps that came to nothing, update ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight._gradients import gradients, norms_of
from firstlight._require import require
from firstlight._shadows import Shadows
from firstlight.callbacks._gradient_listener import GradientListener
from firstlight.callbacks._gradients import loss_scale, scaler_of
from firstlight.callbacks._packages import lightning_module_class

_MOST_UNCOUNTED = 1000  # norms that wait on the device where nothing is logged


@final
class GradientMonitor(Callback):
    """Watch the gradients of each optimizer step without waiting for the device.

    Norms are 2-norms over the parameters of the optimizer, accumulated over the window and unscaled. Between log
    steps everything stays on the device, one number a step; nothing is read back before Lightning writes its logs.

    Role: observer.
    Reads: ``param.grad`` before clipping and, where clipping is not torch's by norm, again after it.
    Writes: log entries only.
    Logs, every ``every_n_steps`` (default: the Trainer's ``log_every_n_steps``): ``grad/norm/total`` and
    ``grad/norm/<block>`` before clipping; ``grad/clipped_norm`` after it and ``grad/clip_rate``, the fraction of steps
    clipped since the last entry (both only if something clips); ``grad/nonfinite_steps`` since the start;
    ``grad/skipped_steps``, those of them that the scaler of 16-mixed precision left out (only with a scaler);
    ``grad/window_fraction``, micro batches in the step's gradient over ``accumulate_grad_batches`` (only if that is
    above 1): the last window of an epoch may be shorter, and Lightning divides its sum by the whole number all the
    same, so that its norm is to be read over this fraction; ``update/ratio/<block>``, the norm of the step's change of
    the weights over the norm of the weights.

    Args:
        depth: blocks are modules at this depth of the LightningModule: 1 gives ``model``, 2 gives ``model.head``.
        every_n_steps: optimizer steps between entries.

    Raises:
        ValueError: ``depth`` or ``every_n_steps`` below 1.

    Under manual optimization the norm is the one that the optimizer sees, after any clipping of the user's own. There,
    under 16-mixed precision, ``self.clip_gradients`` clips gradients that still carry the loss scale; it is told once.
    Not supported: DeepSpeed, which keeps gradients to itself; there it stays silent.
    """

    role: ClassVar[str] = "observer"

    def __init__(self, *, depth: int = 2, every_n_steps: int | None = None) -> None:
        require(depth >= 1, "depth", depth, "one or more")
        require(every_n_steps is None or every_n_steps >= 1, "every_n_steps", every_n_steps, "one or more")
        self.depth = depth
        self.every_n_steps = every_n_steps
        self._key = self._generate_state_key(depth=depth)  # two depths may be watched side by side
        self._before = {"nonfinite_steps": 0.0, "skipped_steps": 0.0}  # the run was resumed
        self._shadows = Shadows()
        self._hooks: list[Any] = []
        self._listener: GradientListener | None = None
        self._forget()

    def _forget(self) -> None:
        self._window: Tensor | None = None  # steps, clipped steps, non-finite steps since the last entry
        self._uncounted: dict[Optimizer, list[tuple[Tensor, Tensor | None]]] = {}  # norms that are not in it yet
        self._due = False  # this step has an entry
        self._nonfinite: Tensor | None = None
        self._skipped: float | Tensor = 0.0
        # Steps of this batch: by optimizer, its norm before clipping, and the norm of each of its blocks.
        self._pending: dict[Optimizer, Tensor] = {}
        self._in_blocks: dict[tuple[Optimizer, str], Tensor] = {}
        self._left_in: dict[Optimizer, Tensor | None] = {}  # the loss scale in the gradients of a fused optimizer
        self._micro_batches = 0
        self._blocks: dict[int, str] = {}
        self._weights: dict[tuple[Optimizer, str], tuple[list[Tensor], list[Tensor]]] = {}
        self._values: dict[str, Tensor] = {}
        self._last_step = -1

    @property
    def state_key(self) -> str:
        return self._key  # Lightning asks for it at every hook

    def state_dict(self) -> dict[str, Any]:
        self.count()
        parts = [self._nonfinite, None if self._window is None else self._window[2]]
        counts = {"nonfinite_steps": sum(float(part) for part in parts if part is not None)}
        counts["skipped_steps"] = float(self._skipped)
        return {name: self._before[name] + count for name, count in counts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = {name: float(state_dict.get(name, 0.0)) for name in self._before}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()
        if trainer.global_step == 0:
            self._before = dict.fromkeys(self._before, 0.0)
        clip = trainer.gradient_clip_val
        self._clip_value = float(clip) if clip else None
        self._by_value = trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE
        # Clipping that is not torch's by norm has no closed form for the norm after it: it is measured.
        own = is_overridden("configure_gradient_clipping", pl_module, parent=lightning_module_class(pl_module))
        own = own and pl_module.automatic_optimization
        self._measure_after = own or (self._clip_value is not None and self._by_value)
        self._clips = self._measure_after or self._clip_value is not None
        self._scaler = scaler_of(trainer)
        if self._scaler is not None:
            self._hooks = [optimizer.register_step_post_hook(self._on_applied) for optimizer in trainer.optimizers]
            if not pl_module.automatic_optimization:
                self._shadows.put(pl_module, "clip_gradients", self._telling(pl_module.clip_gradients))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        self._shadows.lift()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _telling(self, clip_gradients: Callable[..., None]) -> Callable[..., None]:
        """Return ``clip_gradients``, which at its first call says what it clips."""
        told = False

        def clip_and_tell(*args: Any, **kwargs: Any) -> None:
            nonlocal told
            if not told:
                told = True
                rank_zero_warn(
                    "self.clip_gradients under manual optimization and 16-mixed precision clips gradients that still "
                    "carry the loss scale: their true norm becomes the limit over the scale. Remove the call and add "
                    "GradientClipping(max_norm=...), which clips without the scale"
                )
            clip_gradients(*args, **kwargs)

        return clip_and_tell

    def _on_applied(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Take back the step that was counted as skipped; a fused optimizer is called all the same, and told."""
        self._skipped = self._skipped + getattr(optimizer, "found_inf", 0.0) - 1.0
        self._left_in[optimizer] = getattr(optimizer, "grad_scale", None)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._micro_batches += 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step
        if step == self._last_step and optimizer in self._pending:
            return  # LBFGS evaluates its closure several times a step
        self._last_step = step
        if self._scaler is not None:
            self._skipped = self._skipped + 1.0  # until the optimizer's hook says otherwise
        owners, grads = gradients(optimizer)
        if not grads:
            return
        norms = norms_of(grads)
        if self._scaler is not None:
            norms = _unscaled(norms, loss_scale(trainer, optimizer))
        total = torch.linalg.vector_norm(norms)
        self._pending[optimizer] = total
        if self._listener is not None:
            self._listener.hear_norms(optimizer, owners, norms, total)
        self._due = self._should_log(trainer)
        if self._due:
            for block, members in self._members(pl_module, owners).items():
                self._in_blocks[optimizer, block] = torch.linalg.vector_norm(norms[members])
                weights: list[Tensor] = [owners[member] for member in members]
                self._weights[optimizer, block] = (weights, [weight.detach().clone() for weight in weights])
        if not self._measure_after:
            self._keep(optimizer, total, None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._pending:
            return  # no optimizer stepped: inside an accumulation window
        if self._measure_after:
            for optimizer, total in self._pending.items():
                left_in = self._left_in.get(optimizer)
                grads = gradients(optimizer)[1]  # none where clipping has left the step out
                norm = torch.linalg.vector_norm(norms_of(grads)) if grads else torch.zeros_like(total)
                self._keep(optimizer, total, _unscaled(norm, left_in))
        # Lightning also logs the step at which a callback before this one stopped the run.
        if self._due or (trainer.should_stop and self._should_log(trainer)):
            self._log(trainer, pl_module)
        self._pending, self._in_blocks, self._left_in, self._micro_batches = {}, {}, {}, 0

    def _keep(self, optimizer: Optimizer, total: Tensor, after: Tensor | None) -> None:
        self._last = total, after
        kept = self._uncounted.setdefault(optimizer, [])
        kept.append((total, after))
        if len(kept) >= _MOST_UNCOUNTED:
            self.count()

    def count(self) -> None:
        """Put the steps that are not counted yet into the window, together: a few small kernels, not ten a step."""
        for optimizer, kept in self._uncounted.items():
            total = torch.stack([before for before, _ in kept])
            finite = torch.isfinite(total)
            clipped = torch.zeros_like(finite)
            if self._measure_after:
                clipped = torch.stack([after for _, after in kept if after is not None]) < total * (1 - 1e-6)
            elif self._clip_value is not None:
                clipped = total > self._clip_value
            steps = torch.stack([torch.ones_like(finite), clipped & finite, ~finite]).sum(1).to(total.dtype)
            self._window = steps if self._window is None else self._window + steps
            if self._listener is not None:
                self._listener.hear_count(optimizer, steps)
        self._uncounted = {}

    def _after_clipping(self) -> Tensor | None:
        """Return the norm after clipping of the last step, or None if nothing clips."""
        total, after = self._last
        if after is not None or self._clip_value is None:
            return after
        return total * torch.clamp(self._clip_value / (total + 1e-6), max=1.0)  # as clip_grad_norm_ does it

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        after = self._after_clipping()
        if after is not None:
            self._values["grad/clipped_norm"] = after
        self.count()
        assert self._window is not None
        steps, clipped, nonfinite = self._window.unbind()
        self._nonfinite = nonfinite if self._nonfinite is None else self._nonfinite + nonfinite
        self._values["grad/norm/total"] = torch.linalg.vector_norm(torch.stack(list(self._pending.values())))
        self._values["grad/nonfinite_steps"] = self._nonfinite + self._before["nonfinite_steps"]
        if self._scaler is not None:
            self._values["grad/skipped_steps"] = torch.zeros_like(steps) + self._skipped + self._before["skipped_steps"]
        if self._clips:
            self._values["grad/clip_rate"] = clipped / steps
        if trainer.accumulate_grad_batches > 1:
            fraction = self._micro_batches / trainer.accumulate_grad_batches
            self._values["grad/window_fraction"] = torch.full_like(steps, fraction)
        for block in dict.fromkeys(block for _, block in self._in_blocks):
            parts = [norm for (_, name), norm in self._in_blocks.items() if name == block]
            self._values[f"grad/norm/{block}"] = torch.linalg.vector_norm(torch.stack(parts))
            pairs = [pair for (_, name), pair in self._weights.items() if name == block]
            weights, before = ([tensor for pair in pairs for tensor in pair[side]] for side in (0, 1))
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
        path = [part for part in parameter_name.split(".")[:-1] if part != "_orig_mod"]  # torch.compile's wrapper
        return ".".join(path[: self.depth]) or "root"


def _unscaled(norms: Tensor, scale: Tensor | None) -> Tensor:
    return norms if scale is None else norms / scale.to(norms.device)
