"""GradientClipping: by norm, by value, by percentile of recent norms, or adaptive; and what to do with NaN."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from firstlight._require import require
from firstlight.callbacks._gradients import gradients, norms_of

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
    * ``percentile``: ``max_norm`` at this percentile of the last 1000 norms, from the tenth step on (AutoClip,
      Seetharaman et al. 2020, arXiv:2007.14469).
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
            ``"raise"`` ends the run with the same words. ``"ignore"`` looks at nothing and waits for nothing.
        adaptive_exclude: ends of parameter names.

    Raises:
        ValueError: none or several of the four, or one out of range; ``gradient_clip_val`` on the Trainer as well.
        FloatingPointError: a gradient that is not finite, with ``on_nonfinite="raise"``.

    Under manual optimization it clips when the optimizer steps. With 16-mixed precision the scaler skips steps that
    overflow, and this callback leaves them to it.
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
        self._forget()

    def _forget(self) -> None:
        self.skipped_steps = 0
        self._norms = torch.full((_HISTORY,), torch.nan)  # a ring of recent norms; moves to the gradients' device
        self._seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped_steps": self.skipped_steps, "norms": self._norms.cpu(), "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped_steps, self._seen = int(state_dict["skipped_steps"]), int(state_dict["seen"])
        self._norms = state_dict["norms"].clone()

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

            pl_module.configure_gradient_clipping = configure_gradient_clipping  # type: ignore[method-assign]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not pl_module.automatic_optimization:
            self._clip(trainer, optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.__dict__.pop("configure_gradient_clipping", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        pl_module.__dict__.pop("configure_gradient_clipping", None)

    @torch.no_grad()
    def _clip(self, trainer: Trainer, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()  # so that its values are what the optimizer will use
        owners, grads = gradients(optimizer)
        if not grads:
            return
        total = torch.linalg.vector_norm(norms_of(grads))
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if self.on_nonfinite != "ignore" and not scaled and not bool(torch.isfinite(total)):
            self._refuse(trainer, optimizer, owners, grads)
            return
        if self.max_norm is not None:
            _scale_to(grads, total, self.max_norm)
        elif self.max_value is not None:
            local = _local(grads)
            torch._foreach_clamp_max_(local, self.max_value)
            torch._foreach_clamp_min_(local, -self.max_value)
        elif self.percentile is not None:
            self._by_percentile(grads, total)
        else:
            assert self.adaptive is not None
            for parameter, gradient in zip(owners, grads, strict=True):
                if not self._names.get(id(parameter), "").endswith(self.adaptive_exclude or ("\0",)):
                    _clip_units(parameter, gradient, self.adaptive)

    def _by_percentile(self, grads: list[Tensor], total: Tensor) -> None:
        assert self.percentile is not None
        self._norms = self._norms.to(total.device)
        self._norms[self._seen % _HISTORY] = total
        self._seen += 1
        if self._seen >= _WARM:
            _scale_to(grads, total, torch.nanquantile(self._norms, self.percentile / 100))

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
    coefficient = torch.clamp(limit / (total + _EPS), max=1.0)
    for device, dtype in {(gradient.device, gradient.dtype) for gradient in grads}:
        some = _local([gradient for gradient in grads if (gradient.device, gradient.dtype) == (device, dtype)])
        if dtype == torch.float16:  # a coefficient below 6e-5 loses its digits there
            for gradient in some:
                gradient.copy_(gradient.float() * coefficient.to(device))
        else:
            torch._foreach_mul_(some, coefficient.to(device, dtype))


def _local(grads: list[Tensor]) -> list[Tensor]:
    """Return the shards that this rank holds, which share memory with the gradients."""
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in grads]


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
