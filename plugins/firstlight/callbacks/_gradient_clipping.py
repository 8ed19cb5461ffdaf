"""GradientClipping: by norm, by value, by percentile of recent norms, or adaptive; and what to do with NaN."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from firstlight._gradients import gradients, norms_of
from firstlight._require import require
from firstlight._shadows import Shadows
from firstlight.callbacks._gradients import local, loss_scale, multiply_, scaler_of

_HISTORY = 1000  # norms that the percentile looks back on
_WARM = 10  # steps before a percentile means anything
_SAID = 3  # skipped steps that are told one by one
_EPS = 1e-6


@final
class GradientClipping(Callback):
    """Clip the gradients of every optimizer step, and decide what happens to a step whose gradient is not finite.

    Exactly one of the four ways:

    * ``max_norm``: scale the whole gradient down to this 2-norm (Pascanu et al. 2013, arXiv:1211.5063).
    * ``max_value``: clamp every element; it changes the direction.
    * ``percentile``: ``max_norm`` at this percentile of the last 1000 finite norms of the optimizer, from its tenth
      step on (AutoClip, Seetharaman et al. 2020, arXiv:2007.14469).
    * ``adaptive``: per unit, the norm of a gradient is at most this fraction of the norm of its weights (AGC, Brock et
      al. 2021, arXiv:2102.06171); parameters named in ``adaptive_exclude`` are left alone, usually the last layer.

    Norms are computed in float32: squares of fp16 gradients overflow, and torch's ``clip_grad_norm_`` then sets every
    gradient to zero. Sharded gradients (FSDP2) are measured over all ranks.

    Role: actor; it changes gradients, between the backward pass and the optimizer step.
    Reads: gradients, accumulated and unscaled. Writes: gradients. Logs: nothing; :class:`GradientMonitor` does. The
    number of skipped steps is ``callback.skipped_steps``.

    Args:
        max_norm: see above.
        max_value: see above.
        percentile: see above, in (0, 100).
        adaptive: see above.
        on_nonfinite: ``"skip"`` leaves the step out, moments and decay included, and names the parameter; it reads one
            value from the device per step, and under DDP all ranks agree, since they hold the same gradients.
            ``"raise"`` ends the run with the same words. ``"ignore"`` looks at nothing and waits for nothing, and so
            do the other two under 16-mixed precision: there the scaler finds such steps, leaves them out and lowers
            its scale, which is no fault.
        adaptive_exclude: ends of parameter names.

    Raises:
        ValueError: none or several of the four, or one out of range; ``gradient_clip_val`` on the Trainer as well.
        FloatingPointError: a gradient that is not finite, with ``on_nonfinite="raise"``.

    Under manual optimization it clips when the optimizer steps. Under 16-mixed precision it clips the gradient without
    the scale, of fused optimizers too.
    """

    role: ClassVar[str] = "actor"

    def __init__(
        self,
        max_norm: float | None = None,
        *,
        max_value: float | None = None,
        percentile: float | None = None,
        adaptive: float | None = None,
        on_nonfinite: Literal["skip", "raise", "ignore"] = "skip",
        adaptive_exclude: tuple[str, ...] | list[str] = (),
    ) -> None:
        ways = {"max_norm": max_norm, "max_value": max_value, "percentile": percentile, "adaptive": adaptive}
        given = {name: value for name, value in ways.items() if value is not None}
        require(len(given) == 1, "GradientClipping", given, f"given exactly one of {', '.join(ways)}")
        for name, value in given.items():
            require(0 < value < float("inf"), name, value, "above zero")
        require(percentile is None or percentile < 100, "percentile", percentile, "below 100")
        known = ("skip", "raise", "ignore")
        require(on_nonfinite in known, "on_nonfinite", on_nonfinite, f"one of {', '.join(known)}")
        self.max_norm = max_norm
        self.max_value = max_value
        self.percentile = percentile
        self.adaptive = adaptive
        self.on_nonfinite = on_nonfinite
        self.adaptive_exclude = tuple(adaptive_exclude)
        self.skipped_steps = 0
        self._names: dict[int, str] = {}
        self._shadows = Shadows()
        self._forget()

    def _forget(self) -> None:
        self.skipped_steps = 0
        # By number of the optimizer: a ring of recent norms, on the gradients' device, and how many there have been.
        self._norms: dict[int, Tensor] = {}
        self._seen: dict[int, int] = {}

    def state_dict(self) -> dict[str, Any]:
        norms = {number: ring.cpu() for number, ring in self._norms.items()}
        return {"skipped_steps": self.skipped_steps, "norms": norms, "seen": dict(self._seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped_steps, self._seen = int(state_dict["skipped_steps"]), dict(state_dict["seen"])
        self._norms = {number: ring.clone() for number, ring in state_dict["norms"].items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:
            self._forget()  # a checkpoint, if there is one, is loaded after this

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.gradient_clip_val:
            raise ValueError(
                f"two writers of the gradient: GradientClipping and Trainer(gradient_clip_val="
                f"{trainer.gradient_clip_val}); remove one of them"
            )
        sharded = any(isinstance(parameter, DTensor) for parameter in pl_module.parameters())
        require(not (sharded and self.adaptive), "adaptive", self.adaptive, "None for a sharded model: units are split")
        self._names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        if pl_module.automatic_optimization:
            # After every callback's on_before_optimizer_step: monitors see the gradient as it was, in any order.
            def configure_gradient_clipping(optimizer: Optimizer, *_: Any, **__: Any) -> None:
                self._clip(trainer, optimizer)

            self._shadows.put(pl_module, "configure_gradient_clipping", configure_gradient_clipping)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not pl_module.automatic_optimization:
            self._clip(trainer, optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shadows.lift()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._shadows.lift()

    @torch.no_grad()
    def _clip(self, trainer: Trainer, optimizer: Optimizer) -> None:
        scaler = scaler_of(trainer)
        if loss_scale(trainer, optimizer) is not None:
            scaler.unscale_(optimizer)  # the fused step then finds nothing left to take out
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()  # so that its values are what the optimizer will use
        owners, grads = gradients(optimizer)
        if not grads:
            return
        total = torch.linalg.vector_norm(norms_of(grads))
        if self.on_nonfinite != "ignore" and scaler is None and not bool(torch.isfinite(total)):
            self._refuse(trainer, optimizer, owners, grads)
            return
        if self.max_norm is not None:
            _scale_to(grads, total, self.max_norm)
        elif self.max_value is not None:
            shards = local(grads)
            torch._foreach_clamp_max_(shards, self.max_value)
            torch._foreach_clamp_min_(shards, -self.max_value)
        elif self.percentile is not None:
            number = next((n for n, known in enumerate(trainer.optimizers) if known is optimizer), 0)
            self._by_percentile(number, grads, total)
        else:
            assert self.adaptive is not None
            for parameter, gradient in zip(owners, grads, strict=True):
                if not self._names.get(id(parameter), "").endswith(self.adaptive_exclude or ("\0",)):
                    _clip_units(parameter, gradient, self.adaptive)

    def _by_percentile(self, number: int, grads: list[Tensor], total: Tensor) -> None:
        assert self.percentile is not None
        ring, seen = self._norms.get(number), self._seen.get(number, 0)
        ring = total.new_full((_HISTORY,), torch.nan) if ring is None else ring.to(total.device)
        ring[seen % _HISTORY] = torch.where(torch.isfinite(total), total, torch.nan)
        self._norms[number], self._seen[number] = ring, seen + 1
        if seen + 1 >= _WARM:
            _scale_to(grads, total, torch.nanquantile(ring, self.percentile / 100))

    def _refuse(self, trainer: Trainer, optimizer: Optimizer, owners: list[nn.Parameter], grads: list[Tensor]) -> None:
        names = [
            self._names.get(id(parameter), "a parameter")
            for parameter, gradient in zip(owners, grads, strict=True)
            if not bool(torch.isfinite(gradient).all())
        ]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "their sum"
        what = f"step {trainer.global_step}: the gradient of {shown} is not finite"
        if self.on_nonfinite == "raise":
            raise FloatingPointError(f"{what}; look at the loss and the inputs of this batch, or lower the rate")
        self.skipped_steps += 1
        for parameter in owners:
            parameter.grad = None  # the optimizer passes over it: no update, no decay, no trace in its moments
        if self.skipped_steps <= _SAID:
            rank_zero_warn(f"{what}; the step is left out ({self.skipped_steps} so far)")


def _scale_to(grads: list[Tensor], total: Tensor, limit: Tensor | float) -> None:
    """Scale by ``min(1, limit / total)``, as torch does it."""
    multiply_(grads, torch.clamp(limit / (total + _EPS), max=1.0))


def _clip_units(parameter: Tensor, gradient: Tensor, fraction: float) -> None:
    """Scale each unit of ``gradient`` whose norm is above ``fraction`` times the norm of its weights."""
    weight = unit_norm(parameter).clamp(min=1e-3)  # so that weights that start at zero can leave it
    norm = unit_norm(gradient)
    limit = weight * fraction
    gradient.mul_(torch.where(norm > limit, limit / norm.clamp(min=_EPS), 1.0).to(gradient.dtype))


def unit_norm(tensor: Tensor) -> Tensor:
    """Return the 2-norm of each output unit: over all but the first dimension, over all of a vector.

    >>> unit_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).flatten()
    tensor([5., 1.])
    """
    dim = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    norm: Tensor = torch.linalg.vector_norm(tensor.float(), dim=dim, keepdim=dim is not None)
    return norm
